import Foundation

private let boxValues = 4
private let background = 1 // values before those of the classes
private let mostCandidates = 400 // of a class, before suppression
private let largestGrowth = log(1000.0 / 16)

/// A box that was found, in pixels of the model's image, and which class is how likely in it.
public struct Found: Equatable {
    public let label: Int
    public let score: Float
    public let box: Box
}

/// How the rows that a detector gives become boxes, as docs/formats/detectors.md says it.
public struct Rows: Equatable {
    /// x and y of the centre, width and height for each row, pixels.
    private let anchors: [Double]
    private let centreScale: Double
    private let sizeScale: Double
    private let iouLimit: Double
    private let mostBoxes: Int
    public let sizePx: Double
    public let leastScore: Double

    /// How many rows there are.
    public var count: Int { anchors.count / boxValues }

    /// From the text of a file's metadata entry "boxes"; nil where it says nothing that can be used.
    public init?(_ text: String?) {
        guard let data = text?.data(using: .utf8), let told = try? JSONDecoder().decode(Told.self, from: data) else { return nil }
        let positive = [told.size_px, told.centre_scale, told.size_scale, told.iou_limit]
        guard positive.allSatisfy({ $0.isFinite && $0 > 0 }), told.least_score.isFinite, told.most_boxes > 0,
            told.levels.count <= 16, told.levels.allSatisfy(\.isUsable)
        else { return nil }
        (sizePx, centreScale, sizeScale, iouLimit) = (told.size_px, told.centre_scale, told.size_scale, told.iou_limit)
        (leastScore, mostBoxes) = (told.least_score, told.most_boxes)
        anchors = told.levels.flatMap { $0.anchors(sizePx: told.size_px) }
    }

    /// Values of a row for so many classes.
    public func width(classes: Int) -> Int { boxValues + background + classes }

    /// The boxes of one image, the likeliest first. `rows` has for each anchor a box, the logit of the background and
    /// those of the classes.
    public func find(_ rows: [Float], classes: Int) -> [Found] {
        let width = self.width(classes: classes)
        precondition(rows.count == count * width, "\(rows.count) values for \(count) rows of \(width)")
        let scores = (0..<count).map { Self.likelihoods(rows[($0 * width + boxValues)..<(($0 + 1) * width)]) }
        let likely = (0..<classes).flatMap { label -> [Found] in
            let places = scores.indices.filter { Double(scores[$0][label]) >= leastScore }
            let best = places.sorted { (scores[$1][label], $0) < (scores[$0][label], $1) }.prefix(mostCandidates)
            return best.map { Found(label: label, score: scores[$0][label], box: decoded(rows, $0, width)) }
        }
        let kept = suppress(
            likely.map(\.box), scores: likely.map(\.score), classes: likely.map(\.label), iouThreshold: Float(iouLimit)
        )
        return kept.prefix(mostBoxes).map { likely[$0] }
    }

    private static func likelihoods(_ logits: ArraySlice<Float>) -> [Float] {
        let largest = logits.max() ?? 0
        let shares = logits.map { exp(Double($0 - largest)) }
        let sum = shares.reduce(0, +)
        return shares.dropFirst(background).map { Float($0 / sum) }
    }

    private func decoded(_ rows: [Float], _ row: Int, _ width: Int) -> Box {
        func value(_ number: Int) -> Double { Double(rows[row * width + number]) }
        func anchor(_ number: Int) -> Double { anchors[row * boxValues + number] }
        func centre(_ axis: Int) -> Double { anchor(axis) + value(axis) * centreScale * anchor(axis + 2) }
        func half(_ axis: Int) -> Double { anchor(axis + 2) * exp(min(value(axis + 2) * sizeScale, largestGrowth)) / 2 }
        func inside(_ at: Double) -> Float { Float(min(max(at, 0), sizePx)) }
        return Box(
            y1: inside(centre(1) - half(1)), x1: inside(centre(0) - half(0)), y2: inside(centre(1) + half(1)),
            x2: inside(centre(0) + half(0))
        )
    }
}

/// The entry as it is written.
private struct Told: Decodable {
    struct Level: Decodable {
        let cells: Int
        let shapes: [[Double]]

        var isUsable: Bool {
            (1..<1024).contains(cells) && shapes.count < 64
                && shapes.allSatisfy { $0.count == 2 && $0.allSatisfy { $0.isFinite && $0 > 0 } }
        }

        /// Row by row, cell by cell, shape by shape.
        func anchors(sizePx: Double) -> [Double] {
            (0..<(cells * cells)).flatMap { cell -> [Double] in
                let (x, y) = (Double(cell % cells) + 0.5, Double(cell / cells) + 0.5)
                return shapes.flatMap { [x / Double(cells) * sizePx, y / Double(cells) * sizePx, $0[0] * sizePx, $0[1] * sizePx] }
            }
        }
    }

    let size_px: Double
    let levels: [Level]
    let centre_scale: Double
    let size_scale: Double
    let least_score: Double
    let iou_limit: Double
    let most_boxes: Int
}
