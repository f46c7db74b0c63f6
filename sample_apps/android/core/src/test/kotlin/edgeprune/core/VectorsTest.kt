package edgeprune.core

import java.io.File
import kotlin.test.Test
import kotlin.test.assertTrue

class VectorsTest {
    @Test
    fun `what Python computed`() {
        val path = checkNotNull(System.getenv("EDGEPRUNE_VECTORS")) { "EDGEPRUNE_VECTORS: the path of vectors.json" }
        val checks = checks(File(path))
        assertTrue(checks.size > 20)
        for ((name, check) in checks) {
            try {
                check()
            } catch (error: IllegalStateException) {
                throw AssertionError("$name: ${error.message}", error)
            }
        }
    }
}
