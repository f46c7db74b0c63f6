import EdgepruneCore
import Foundation
import XCTest

/// Holds this package against what Python computed: `vectors.json` of sample_apps/vectors/write_vectors.py, named by
/// the environment variable EDGEPRUNE_VECTORS.
final class VectorsTests: XCTestCase {
    private static let vectors: Vectors = {
        guard let path = ProcessInfo.processInfo.environment["EDGEPRUNE_VECTORS"] else {
            fatalError("EDGEPRUNE_VECTORS: the path of vectors.json")
        }
        do {
            let decoder = JSONDecoder()
            decoder.keyDecodingStrategy = .convertFromSnakeCase
            return try decoder.decode(Vectors.self, from: Data(contentsOf: URL(fileURLWithPath: path)))
        } catch {
            fatalError("\(path): \(error)")
        }
    }()
    private var vectors: Vectors { Self.vectors }

    func testFilesSayOfThemselvesWhatPythonReads() {
        XCTAssertFalse(vectors.files.isEmpty)
        for file in vectors.files {
            let told = Description(json: file.json)
            XCTAssertEqual(told.range.map { [$0.lowerBound, $0.upperBound] }, file.range)
            XCTAssertEqual(told.normalization?.mean, file.mean)
            XCTAssertEqual(told.normalization?.std, file.std)
            XCTAssertEqual(told.labels, file.labels)
            XCTAssertEqual(told.resizePx, file.resizePx)
            XCTAssertEqual(told.interpolation.rawValue, file.interpolation)
        }
    }

    func testTextsThatMakeNoSenseSayNothing() {
        for text in [nil, "", "[]", "{", "{\"input\": 3, \"labels\": [1]}", "{\"input\": {\"range\": [\"0\", 1]}}"] {
            let told = Description(json: text)
            XCTAssertNil(told.range)
            XCTAssertNil(told.normalization)
            XCTAssertNil(told.labels)
            XCTAssertEqual(told.interpolation, .bilinear)
        }
    }

    func testImagesAreResizedAndCroppedAsPillowDoes() {
        for way in vectors.preparations {
            let found = fit(
                image(way.image), widthPx: way.sizePx, heightPx: way.sizePx, resizePx: way.resizePx,
                interpolation: way.interpolation, wholeImage: way.wholeImage
            )
            XCTAssertEqual(found.bytes, [UInt8](way.rgb), "\(way.image) \(way.sizePx) \(way.interpolation)")
        }
    }

    func testAFileIsFedWhatPythonFeedsItAndNamesTheSameClasses() throws {
        XCTAssertFalse(vectors.answers.isEmpty)
        for answer in vectors.answers {
            let file = try XCTUnwrap(vectors.files.first { $0.path == answer.file })
            let told = Description(json: file.json)
            let (height, width) = answer.channelsLast ? (file.inputShape[1], file.inputShape[2]) : (file.inputShape[2], file.inputShape[3])
            let fitted = fit(image(answer.image), widthPx: width, heightPx: height, resizePx: told.resizePx, interpolation: told.interpolation)
            let found = try XCTUnwrap(
                tensor(fitted, channelsLast: answer.channelsLast, range: told.range, normalization: told.normalization)
            )
            let expected = answer.tensor.floats
            XCTAssertEqual(found.count, expected.count)
            XCTAssertLessThanOrEqual(zip(found, expected).map { abs($0 - $1) }.max() ?? 0, 1e-5)
            let likely = try XCTUnwrap(top(answer.values, labels: told.labels, count: answer.top.count))
            XCTAssertEqual(likely.map(\.name), answer.top.map(\.name))
            for (one, other) in zip(likely, answer.top) {
                XCTAssertEqual(one.probability, other.probability, accuracy: 1e-5)
            }
        }
    }

    func testTheLikeliestClassOfEachPixel() {
        for map in vectors.maps {
            let sides = map.channelsLast ? Array(map.shape[1...]) : [map.shape[2], map.shape[3], map.shape[1]]
            let found = likeliest(
                map.values.floats, heightPx: sides[0], widthPx: sides[1], classes: sides[2], channelsLast: map.channelsLast
            )
            XCTAssertEqual(found, [UInt8](map.classes).map(Int.init))
        }
    }

    func testBoxesAreSuppressedAsTorchvisionDoes() {
        XCTAssertFalse(vectors.suppressions.isEmpty)
        for suppression in vectors.suppressions {
            let boxes = suppression.boxes.map { Box(y1: $0[0], x1: $0[1], y2: $0[2], x2: $0[3]) }
            let kept = suppress(
                boxes, scores: suppression.scores, classes: suppression.classes, iouThreshold: suppression.iouThreshold
            )
            XCTAssertEqual(kept, suppression.kept)
        }
    }

    func testRowsBecomeTheBoxesThatPythonFinds() throws {
        XCTAssertFalse(vectors.detections.isEmpty)
        for detection in vectors.detections {
            let rows = try XCTUnwrap(Rows(detection.boxes))
            let found = rows.find(detection.rows.floats, classes: detection.classes)
            XCTAssertEqual(found.map(\.label), detection.found.map(\.label))
            for (one, other) in zip(found, detection.found) {
                XCTAssertEqual(one.score, other.score, accuracy: 1e-5)
                for (side, expected) in zip([one.box.x1, one.box.y1, one.box.x2, one.box.y2], other.corners) {
                    XCTAssertEqual(side, expected, accuracy: 1e-3)
                }
            }
        }
    }

    func testRowsThatAreNone() {
        for text in [nil, "", "[]", "{}", "{\"size_px\": 320, \"levels\": [{\"cells\": 0}]}"] {
            XCTAssertNil(Rows(text))
        }
    }

    func testTimesAreSpreadAsInBench() throws {
        for timing in vectors.timings {
            let found = try XCTUnwrap(Spread(timing.milliseconds))
            XCTAssertEqual(found.low, timing.low, accuracy: 1e-9)
            XCTAssertEqual(found.median, timing.median, accuracy: 1e-9)
            XCTAssertEqual(found.high, timing.high, accuracy: 1e-9)
        }
        XCTAssertNil(Spread([]))
    }

    private func image(_ name: String) -> RGBImage {
        let found = vectors.images.first { $0.name == name }!
        return RGBImage(widthPx: found.widthPx, heightPx: found.heightPx, bytes: [UInt8](found.rgb))
    }
}

private struct Vectors: Decodable {
    struct File: Decodable {
        let path: String
        let json: String
        let range: [Double]?
        let mean: [Double]?
        let std: [Double]?
        let labels: [String]?
        let resizePx: Int?
        let interpolation: String
        let inputShape: [Int]
    }

    struct Picture: Decodable {
        let name: String
        let widthPx: Int
        let heightPx: Int
        let rgb: Data
    }

    struct Preparation: Decodable {
        let image: String
        let sizePx: Int
        let resizePx: Int?
        let interpolation: Interpolation
        let wholeImage: Bool
        let rgb: Data
    }

    struct Class: Decodable {
        let name: String
        let probability: Double
    }

    struct Answer: Decodable {
        let file: String
        let image: String
        let channelsLast: Bool
        let tensor: Data
        let values: [Float]
        let top: [Class]
    }

    struct Map: Decodable {
        let shape: [Int]
        let channelsLast: Bool
        let values: Data
        let classes: Data
    }

    struct Suppression: Decodable {
        let boxes: [[Float]]
        let scores: [Float]
        let classes: [Int]
        let iouThreshold: Float
        let kept: [Int]
    }

    struct Detection: Decodable {
        struct Found: Decodable {
            let label: Int
            let score: Float
            let corners: [Float]
        }

        let boxes: String
        let classes: Int
        let rows: Data
        let found: [Found]
    }

    struct Timing: Decodable {
        let milliseconds: [Double]
        let low: Double
        let median: Double
        let high: Double
    }

    let files: [File]
    let images: [Picture]
    let preparations: [Preparation]
    let answers: [Answer]
    let maps: [Map]
    let suppressions: [Suppression]
    let detections: [Detection]
    let timings: [Timing]
}

extension Data {
    fileprivate var floats: [Float] {
        withUnsafeBytes { buffer in
            stride(from: 0, to: count, by: 4).map { buffer.loadUnaligned(fromByteOffset: $0, as: Float.self) }
        }
    }
}
