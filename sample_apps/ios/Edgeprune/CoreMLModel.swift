import CoreML
import EdgepruneCore

/// A Core ML package, compiled on the phone as Xcode compiles it for an app.
struct CoreMLModel: LoadedModel {
    let description: Description
    let widthPx: Int
    let heightPx: Int
    private let model: MLModel
    private let input: MLFeatureDescription

    static func load(_ file: URL, _ units: Units) async throws -> LoadedModel {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units.coreML
        let compiled = try await MLModel.compileModel(at: file)
        defer { try? FileManager.default.removeItem(at: compiled) }
        return try CoreMLModel(await MLModel.load(contentsOf: compiled, configuration: configuration), file.lastPathComponent)
    }

    private init(_ model: MLModel, _ name: String) throws {
        let told = model.modelDescription
        guard let input = told.inputDescriptionsByName.values.first, told.inputDescriptionsByName.count == 1 else {
            throw Refused("\(name) does not take one image.")
        }
        self.model = model
        self.input = input
        let creator = told.metadata[.creatorDefinedKey] as? [String: String] ?? [:]
        var description = Description(json: creator["edgeprune"], preprocessing: creator["preprocessing"], boxes: creator["boxes"])
        description.labels = (told.classLabels as? [String]) ?? description.labels
        if let image = input.imageConstraint {
            description.range = 0...255 // Core ML gives the package pixels; it normalises them itself.
            (widthPx, heightPx) = (image.pixelsWide, image.pixelsHigh)
        } else if let shape = input.multiArrayConstraint?.shape.map(\.intValue), shape.count == 4 {
            (heightPx, widthPx) = (shape[2], shape[3])
        } else {
            throw Refused("\(name) does not take one image.")
        }
        self.description = description
    }

    func prepared(_ image: RGBImage) throws -> Any {
        let value: MLFeatureValue
        if input.imageConstraint != nil {
            value = MLFeatureValue(pixelBuffer: try pixelBuffer(image))
        } else {
            guard let pixels = tensor(image, channelsLast: false, range: description.range, normalization: description.normalization)
            else { throw Refused("The file does not say how pixels are normalised.") }
            let shape = [1, colours, heightPx, widthPx].map { NSNumber(value: $0) }
            value = MLFeatureValue(multiArray: try MLMultiArray(MLShapedArray(scalars: pixels, shape: shape.map(\.intValue))))
        }
        return try MLDictionaryFeatureProvider(dictionary: [input.name: value])
    }

    func run(_ input: Any) async throws -> Given {
        guard let features = input as? MLFeatureProvider else { throw Refused("There is no image.") }
        let output = try await model.prediction(from: features)
        if let name = model.modelDescription.predictedProbabilitiesName,
            let byName = output.featureValue(for: name)?.dictionaryValue as? [String: NSNumber]
        {
            let values = (description.labels ?? []).map { byName[$0]?.floatValue ?? 0 }
            return Given(values: values, shape: [1, values.count])
        }
        let arrays = output.featureNames.sorted().compactMap { output.featureValue(for: $0)?.multiArrayValue }
        guard let array = arrays.first else { throw Refused("The file gives no values.") }
        return Given(values: MLShapedArray<Float>(converting: array).scalars, shape: array.shape.map(\.intValue))
    }

    private func pixelBuffer(_ image: RGBImage) throws -> CVPixelBuffer {
        var made: CVPixelBuffer?
        CVPixelBufferCreate(nil, image.widthPx, image.heightPx, kCVPixelFormatType_32BGRA, nil, &made)
        guard let buffer = made else { throw Refused("There is no memory for the image.") }
        CVPixelBufferLockBaseAddress(buffer, [])
        defer { CVPixelBufferUnlockBaseAddress(buffer, []) }
        guard let base = CVPixelBufferGetBaseAddress(buffer) else { throw Refused("There is no memory for the image.") }
        let row = CVPixelBufferGetBytesPerRow(buffer)
        for y in 0..<image.heightPx {
            let line = base.advanced(by: y * row).assumingMemoryBound(to: UInt8.self)
            for x in 0..<image.widthPx {
                let from = colours * (y * image.widthPx + x)
                for channel in 0..<colours { line[4 * x + channel] = image.bytes[from + colours - 1 - channel] }
                line[4 * x + 3] = 255
            }
        }
        return buffer
    }
}
