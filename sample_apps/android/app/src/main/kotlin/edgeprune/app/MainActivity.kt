package edgeprune.app

import android.app.Activity
import android.content.ContentValues
import android.content.Intent
import android.graphics.Bitmap
import android.net.Uri
import android.os.Bundle
import android.provider.MediaStore
import android.provider.OpenableColumns
import android.view.View
import android.view.ViewGroup
import android.widget.AdapterView
import android.widget.ArrayAdapter
import android.widget.Button
import android.widget.ImageView
import android.widget.LinearLayout
import android.widget.ScrollView
import android.widget.Spinner
import android.widget.TextView
import edgeprune.core.RgbImage
import java.io.File
import java.util.concurrent.Executors

/** One screen: choose a photo, a file and where it runs; see the classes, the map or the boxes, bytes, times and memory. */
class MainActivity : Activity() {
    private val worker = Executors.newSingleThreadExecutor()
    private lateinit var picture: ImageView
    private lateinit var map: ImageView
    private lateinit var words: TextView
    private lateinit var files: Spinner
    private var photo: RgbImage? = null
    private var taken: Uri? = null
    private var device = Device.CPU

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        val column = LinearLayout(this).apply { orientation = LinearLayout.VERTICAL }
        column.addView(button("Choose a photo") { ask(PHOTO, "image/*") })
        column.addView(button("Take a photo") { take() })
        column.addView(button("Open a .tflite file") { ask(FILE, "*/*") })
        files = Spinner(this)
        column.addView(files)
        val devices = Spinner(this)
        choices(devices, Device.entries.map { it.name }) { place ->
            device = Device.entries[place]
        }
        column.addView(devices)
        picture = ImageView(this).apply { adjustViewBounds = true }
        map = ImageView(this).apply { adjustViewBounds = true }
        words = TextView(this).apply { setTextIsSelectable(true) }
        listOf(words, picture, map).forEach { column.addView(it, ViewGroup.LayoutParams.MATCH_PARENT, ViewGroup.LayoutParams.WRAP_CONTENT) }
        setContentView(ScrollView(this).apply {
            fitsSystemWindows = true
            addView(column)
        })
        copyAssets()
        showFiles()
    }

    override fun onDestroy() {
        worker.shutdownNow()
        super.onDestroy()
    }

    @Deprecated("the newer way needs AndroidX")
    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        val chosen = if (request == CAMERA) taken else data?.data
        if (result != RESULT_OK || chosen == null) return
        if (request == FILE) copy(chosen) else read(chosen)
    }

    private fun ask(request: Int, type: String) {
        val intent = Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType(type)
        startActivityForResult(intent, request)
    }

    private fun take() {
        val described = ContentValues().apply { put(MediaStore.Images.Media.MIME_TYPE, "image/jpeg") }
        taken = contentResolver.insert(MediaStore.Images.Media.EXTERNAL_CONTENT_URI, described)
        startActivityForResult(Intent(MediaStore.ACTION_IMAGE_CAPTURE).putExtra(MediaStore.EXTRA_OUTPUT, taken), CAMERA)
    }

    private fun read(chosen: Uri) = background {
        val bytes = requireNotNull(contentResolver.openInputStream(chosen)) { "The photo cannot be opened." }.use { it.readBytes() }
        photo = requireNotNull(decode(bytes)) { "This is not an image that Android can read." }
        runOnUiThread { run() }
    }

    private fun copy(chosen: Uri) = background {
        val name = contentResolver.query(chosen, arrayOf(OpenableColumns.DISPLAY_NAME), null, null, null)?.use {
            if (it.moveToFirst()) it.getString(0) else null
        }
        val file = File(filesDir, File(name ?: "model.tflite").name)
        contentResolver.openInputStream(chosen)?.use { from -> file.outputStream().use { from.copyTo(it) } }
        runOnUiThread { showFiles(file.name) }
    }

    /** The files of a run that were put into the APK; LiteRT opens files by path. */
    private fun copyAssets() {
        for (name in assets.list("").orEmpty().filter { it.endsWith(".tflite") }) {
            assets.open(name).use { from -> File(filesDir, name).outputStream().use { from.copyTo(it) } }
        }
    }

    private fun showFiles(chosen: String? = null) {
        val names = filesDir.list().orEmpty().filter { it.endsWith(".tflite") }.sorted()
        choices(files, names) {}
        names.indexOf(chosen).takeIf { it >= 0 }?.let { files.setSelection(it) }
    }

    private fun run() {
        val image = photo ?: return words.setText("Choose a photo.")
        val file = (files.selectedItem as String?)?.let { File(filesDir, it) } ?: return words.setText("Open a .tflite file.")
        val where = device
        words.text = "${file.name} on $where …"
        background {
            val trial = Trial.of(file, image, where)
            val counted = trial.boxes?.groupingBy { it.second }?.eachCount()?.map { "${it.value} ${it.key}" }
            val seen = counted?.ifEmpty { listOf("no boxes") }
                ?: trial.classes.map { "%.1f %%  %s".format(100 * it.probability, it.name) }
            val lines = seen + listOf(
                "%,d bytes".format(trial.bytes),
                "loaded in %.1f ms".format(trial.loadMs),
                "%.2f ms, median of 50 (%.2f to %.2f)".format(trial.spread.median, trial.spread.low, trial.spread.high),
                "at most %.0f MB of memory, the whole app".format((trial.peakMemoryBytes ?: 0) / 1e6),
            )
            runOnUiThread {
                words.text = lines.joinToString("\n")
                val boxes = trial.boxes
                show(picture, if (boxes == null) shown(trial.seen) else shown(trial.seen, boxes, trial.classCount))
                map.visibility = if (trial.map == null) View.GONE else View.VISIBLE
                trial.map?.let { (classes, layout) -> show(map, shown(classes, layout)) }
            }
        }
    }

    private fun show(view: ImageView, bitmap: Bitmap) = view.setImageBitmap(bitmap)

    /** LiteRT throws errors of several kinds; each is one sentence on the screen. */
    private fun background(job: () -> Unit) {
        worker.execute {
            try {
                job()
            } catch (error: Exception) {
                runOnUiThread { words.text = error.message ?: error.toString() }
            }
        }
    }

    private fun button(label: String, action: () -> Unit) = Button(this).apply {
        text = label
        setOnClickListener { action() }
    }

    private fun choices(spinner: Spinner, names: List<String>, chosen: (Int) -> Unit) {
        spinner.adapter = ArrayAdapter(this, android.R.layout.simple_spinner_dropdown_item, names)
        spinner.onItemSelectedListener = object : AdapterView.OnItemSelectedListener {
            override fun onItemSelected(parent: AdapterView<*>?, view: View?, position: Int, id: Long) {
                chosen(position)
                run()
            }

            override fun onNothingSelected(parent: AdapterView<*>?) = Unit
        }
    }

    private companion object {
        const val PHOTO = 1
        const val CAMERA = 2
        const val FILE = 3
    }
}
