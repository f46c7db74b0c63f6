package edgeprune.core

/**
 * Reads JSON: objects as Map<String, Any?>, arrays as List<Any?>, numbers as Double, text, Boolean and null.
 * Android brings a reader of its own, a plain JVM does not.
 */
object Json {
    /** Throws an IllegalArgumentException where `text` is not JSON. */
    fun parse(text: String): Any? {
        val reader = Reader(text)
        val value = reader.value(0)
        reader.space()
        require(reader.done) { "more than one value" }
        return value
    }

    private class Reader(private val text: String) {
        private var at = 0
        val done get() = at == text.length

        fun value(depth: Int): Any? {
            require(depth < DEEPEST) { "nested too deep" }
            space()
            return when (val first = peek()) {
                '{' -> entries(depth)
                '[' -> elements(depth)
                '"' -> string()
                't' -> word("true", true)
                'f' -> word("false", false)
                'n' -> word("null", null)
                else -> if (first == '-' || first.isDigit()) number() else fail()
            }
        }

        fun space() {
            while (!done && text[at] in " \t\r\n") at++
        }

        private fun entries(depth: Int): Map<String, Any?> {
            val found = LinkedHashMap<String, Any?>()
            list('}') {
                val name = string()
                space()
                take(':')
                found[name] = value(depth + 1)
            }
            return found
        }

        private fun elements(depth: Int): List<Any?> {
            val found = ArrayList<Any?>()
            list(']') { found.add(value(depth + 1)) }
            return found
        }

        private fun list(end: Char, element: () -> Unit) {
            at++
            space()
            if (peek() == end) {
                at++
                return
            }
            while (true) {
                space()
                element()
                space()
                if (peek() == end) break
                take(',')
            }
            at++
        }

        private fun string(): String {
            take('"')
            val found = StringBuilder()
            while (peek() != '"') {
                val char = text[at++]
                require(char >= ' ') { "a control character in a text" }
                found.append(if (char == '\\') escaped() else char)
            }
            at++
            return found.toString()
        }

        private fun escaped(): Char = when (val char = peek().also { at++ }) {
            '"', '\\', '/' -> char
            'b' -> '\b'
            'f' -> '\u000C'
            'n' -> '\n'
            'r' -> '\r'
            't' -> '\t'
            'u' -> {
                require(at + 4 <= text.length) { "the text ends in the middle" }
                at += 4
                text.substring(at - 4, at).toInt(16).toChar()
            }
            else -> fail()
        }

        private fun number(): Double {
            val start = at
            while (!done && text[at] in "+-.eE0123456789") at++
            return text.substring(start, at).toDoubleOrNull() ?: fail()
        }

        private fun word(word: String, value: Any?): Any? {
            require(text.startsWith(word, at)) { "not JSON at $at" }
            at += word.length
            return value
        }

        private fun take(char: Char) {
            require(peek() == char) { "expected $char at $at" }
            at++
        }

        private fun peek(): Char = if (done) fail() else text[at]

        private fun fail(): Nothing = throw IllegalArgumentException("not JSON at $at")
    }

    private const val DEEPEST = 100
}
