// Apple's format from iOS 27 on; its framework is there where Xcode 27 builds.
#if canImport(CoreAI)
import CoreAI
import EdgepruneCore
import Foundation

/// A Core AI file, specialised for the phone when it is opened.
@available(iOS 27, *)
struct CoreAIModel: LoadedModel {
    let description: Description
    let widthPx: Int
    let heightPx: Int
    private let function: InferenceFunction
    private let inputName: String
    private let outputName: String

    static func load(_ file: URL) async throws -> LoadedModel {
        let model = try await AIModel(contentsOf: file)
        guard let function = try model.loadFunction(named: "main") else { throw Refused("The file has no function main.") }
        return try CoreAIModel(function, ownWords(of: file))
    }

    private init(_ function: InferenceFunction, _ description: Description) throws {
        let told = function.descriptor
        guard let inputName = told.inputNames.first, let outputName = told.outputNames.first,
            case .ndArray(let taken)? = told.inputDescriptor(of: inputName), taken.shape.count == 4
        else { throw Refused("The file does not take one image.") }
        self.function = function
        self.description = description
        (self.inputName, self.outputName) = (inputName, outputName)
        (heightPx, widthPx) = (taken.shape[2], taken.shape[3])
    }

    func prepared(_ image: RGBImage) throws -> Any {
        guard let pixels = tensor(image, channelsLast: false, range: description.range, normalization: description.normalization)
        else { throw Refused("The file does not say how pixels are normalised.") }
        return pixels
    }

    func run(_ input: Any) async throws -> Given {
        guard let pixels = input as? [Float], case .ndArray(let taken)? = function.descriptor.inputDescriptor(of: inputName),
            case .ndArray(let given)? = function.descriptor.outputDescriptor(of: outputName)
        else { throw Refused("There is no image.") }
        var (array, result) = (NDArray(descriptor: taken), NDArray(descriptor: given))
        array.mutableRawView().withUnsafeMutableBytes { bytes, _, _ in
            pixels.withUnsafeBytes { bytes.copyMemory(from: $0) }
        }
        var outputs = InferenceFunction.MutableViews()
        outputs.insert(&result, for: outputName)
        _ = try await function.run(inputs: [inputName: array], outputViews: outputs)
        let values = result.rawView().withUnsafeBytes { bytes, _, _ in Array(bytes.bindMemory(to: Float.self)) }
        return Given(values: values, shape: given.shape)
    }

    /// What edgeprune wrote into the file's metadata.json, among its creator's own entries.
    private static func ownWords(of file: URL) -> Description {
        let data = try? Data(contentsOf: file.appending(path: "metadata.json"))
        let content = data.flatMap { try? JSONSerialization.jsonObject(with: $0) } as? [String: Any] ?? [:]
        func text(_ name: String) -> String? {
            guard let entry = entry(name, in: content) else { return nil }
            if let words = entry as? String { return words }
            return (try? JSONSerialization.data(withJSONObject: entry)).flatMap { String(data: $0, encoding: .utf8) }
        }
        return Description(json: text("edgeprune"), preprocessing: text("preprocessing"), boxes: text("boxes"))
    }

    private static func entry(_ name: String, in content: [String: Any]) -> Any? {
        content[name] ?? content.values.lazy.compactMap { ($0 as? [String: Any]).flatMap { entry(name, in: $0) } }.first
    }
}
#endif
