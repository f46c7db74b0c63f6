package edgeprune.app

import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.Interpreter

/** Where a file runs. Sparse kernels are XNNPACK's: on the CPU only; GPU and NPU run the file dense. */
enum class Device { CPU, GPU, NPU, INTERPRETER }

/** A file ready to run: one float32 tensor in, one out. */
interface LoadedModel : AutoCloseable {
    fun run(input: FloatArray): FloatArray

    companion object {
        /** Throws what LiteRT throws where the device or the file is refused. */
        fun load(file: File, device: Device): LoadedModel = when (device) {
            Device.CPU -> Compiled(file, Accelerator.CPU)
            // What the accelerator does not take runs on the CPU.
            Device.GPU -> Compiled(file, Accelerator.GPU, Accelerator.CPU)
            Device.NPU -> Compiled(file, Accelerator.NPU, Accelerator.CPU)
            Device.INTERPRETER -> Classic(file)
        }
    }
}

private class Compiled(file: File, vararg accelerators: Accelerator) : LoadedModel {
    private val model = CompiledModel.create(file.path, CompiledModel.Options(*accelerators))
    private val inputs = model.createInputBuffers()
    private val outputs = model.createOutputBuffers()

    override fun run(input: FloatArray): FloatArray {
        inputs[0].writeFloat(input)
        model.run(inputs, outputs)
        return outputs[0].readFloat()
    }

    override fun close() {
        (inputs + outputs).forEach { it.close() }
        model.close()
    }
}

/** LiteRT's older way, for where CompiledModel cannot be had. One thread, as edgeprune bench takes. */
private class Classic(file: File) : LoadedModel {
    private val interpreter = Interpreter(file, Interpreter.Options().setNumThreads(1).setUseXNNPACK(true))
    private val input = buffer(interpreter.getInputTensor(0).numBytes())
    private val output = buffer(interpreter.getOutputTensor(0).numBytes())

    override fun run(input: FloatArray): FloatArray {
        this.input.rewind()
        this.input.asFloatBuffer().put(input)
        output.rewind()
        interpreter.run(this.input, output)
        output.rewind()
        return FloatArray(output.remaining() / Float.SIZE_BYTES).also { output.asFloatBuffer().get(it) }
    }

    override fun close() = interpreter.close()

    private fun buffer(bytes: Int): ByteBuffer = ByteBuffer.allocateDirect(bytes).order(ByteOrder.nativeOrder())
}
