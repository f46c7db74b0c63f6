import Foundation

public let colours = 3

/// What a model does to pixels, or the app for it: (pixel / 255 - mean) / std, RGB.
public struct Normalization: Equatable {
    public let mean: [Double]
    public let std: [Double]

    public init(mean: [Double], std: [Double]) {
        self.mean = mean
        self.std = std
    }
}

/// What a file says of itself in the JSON that edgeprune writes into it.
///
/// - range: of the pixels it takes; it normalises them itself. nil: `normalization` is the app's to do; nil too: the
///   file does not say.
/// - labels: class names in output order.
/// - resizePx: shorter side of the whole image before the middle is cropped; nil: the largest middle part is cropped
///   first, then resized.
/// - wholeImage: nothing is cropped, the image is squeezed.
/// - rows: of a detector, how its rows become boxes.
public struct Description: Equatable {
    public var range: ClosedRange<Double>?
    public var normalization: Normalization?
    public var labels: [String]?
    public var resizePx: Int?
    public var interpolation: Interpolation
    public var wholeImage: Bool
    public var rows: Rows?

    /// Reads the JSON of a `.tflite` or `.aimodel` file; what is missing or of another kind counts as not there.
    ///
    /// - Parameters:
    ///   - json: the text; nil: the file has none.
    ///   - preprocessing: the text of the entry "preprocessing" where it lies beside, as in Core ML packages and
    ///     Core AI files; of a `.tflite` it is inside.
    ///   - boxes: the text of the entry "boxes" likewise.
    public init(json: String?, preprocessing: String? = nil, boxes: String? = nil) {
        let content = object(json)
        let input = content["input"] as? [String: Any] ?? [:]
        let bounds = numbers(input["range"], count: 2)
        range = bounds.flatMap { $0[0] <= $0[1] ? $0[0]...$0[1] : nil }
        let leavesIt = content["input"] != nil && (input["range"] == nil || input["range"] is NSNull)
        if leavesIt, let mean = numbers(input["mean"], count: colours), let std = numbers(input["std"], count: colours),
            std.allSatisfy({ $0 > 0 })
        {
            normalization = Normalization(mean: mean, std: std)
        }
        labels = content["labels"] as? [String]
        let metadata = content["metadata"] as? [String: Any]
        let told = object(preprocessing ?? metadata?["preprocessing"] as? String)
        wholeImage = told["whole_image"] as? Bool ?? false
        rows = Rows(boxes ?? metadata?["boxes"] as? String)
        resizePx = (told["resize_px"] as? Int).flatMap { $0 > 0 ? $0 : nil }
        interpolation = (told["interpolation"] as? String).flatMap(Interpolation.init) ?? .bilinear
    }
}

private func object(_ text: String?) -> [String: Any] {
    guard let data = text?.data(using: .utf8) else { return [:] }
    return (try? JSONSerialization.jsonObject(with: data)) as? [String: Any] ?? [:]
}

private func numbers(_ value: Any?, count: Int) -> [Double]? {
    guard let list = value as? [Double], list.count == count, list.allSatisfy(\.isFinite) else { return nil }
    return list
}
