import CoreML
import EdgepruneCore
import Foundation

/// Where Core ML may run a file. Core AI, from iOS 27 on, chooses by itself.
enum Units: String, CaseIterable, Identifiable {
    case all, neuralEngine, gpu, cpu

    var id: Self { self }

    var title: String {
        switch self {
        case .all: return "Core ML's choice"
        case .neuralEngine: return "Neural Engine, or CPU"
        case .gpu: return "GPU, or CPU"
        case .cpu: return "CPU"
        }
    }

    var coreML: MLComputeUnits {
        switch self {
        case .all: return .all
        case .neuralEngine: return .cpuAndNeuralEngine
        case .gpu: return .cpuAndGPU
        case .cpu: return .cpuOnly
        }
    }
}

/// What goes wrong, in one sentence.
struct Refused: LocalizedError {
    let errorDescription: String?

    init(_ words: String) {
        errorDescription = words
    }
}

/// The likeliest class of each pixel, rows first.
struct ClassMap {
    let heightPx: Int
    let widthPx: Int
    let classes: Int
    let likeliest: [Int]
}

/// A box with its class's name, and the hue that it is drawn in, 0 to 1.
struct NamedBox {
    let name: String
    let hue: Double
    let found: Found
}

/// What a file gave: of a classifier the values of its classes, of a segmenter a map (classes, height, width), of a
/// detector rows (boxes, values).
struct Given {
    let values: [Float]
    let shape: [Int]
}

/// A file ready to run on one image that was fitted to it.
protocol LoadedModel {
    /// What it says of itself, and the size of its image.
    var description: Description { get }
    var widthPx: Int { get }
    var heightPx: Int { get }
    func prepared(_ image: RGBImage) throws -> Any
    func run(_ input: Any) async throws -> Given
}

/// What one file did with one image.
struct Trial {
    static let runs = 50
    private static let warmup = 5
    private static let shown = 5

    let bytes: Int
    let loadMs: Double
    let spread: Spread
    let peakMemoryBytes: Int64?
    let seen: RGBImage
    let classes: [Likely]
    let map: ClassMap?
    let boxes: [NamedBox]?

    static func of(_ file: URL, _ photo: RGBImage, _ units: Units) async throws -> Trial {
        let start = DispatchTime.now()
        let model = try await ModelFile.load(file, units)
        let loadMs = milliseconds(since: start)
        let told = model.description
        let seen = fit(
            photo, widthPx: model.widthPx, heightPx: model.heightPx, resizePx: told.resizePx, interpolation: told.interpolation,
            wholeImage: told.wholeImage
        )
        let input = try model.prepared(seen)
        for _ in 0..<warmup { _ = try await model.run(input) }
        var (times, given): ([Double], Given?) = ([], nil)
        for _ in 0..<runs {
            let begun = DispatchTime.now()
            given = try await model.run(input)
            times.append(milliseconds(since: begun))
        }
        guard let given, let spread = Spread(times) else { throw Refused("\(file.lastPathComponent) gives nothing.") }
        let boxes = namedBoxes(given, told)
        let map = classMap(given)
        let classes = map == nil && boxes == nil ? top(given.values, labels: told.labels, count: shown) : []
        guard let classes else { throw Refused("\(file.lastPathComponent) gives values that are not numbers.") }
        return Trial(
            bytes: ModelFile.bytes(of: file), loadMs: loadMs, spread: spread, peakMemoryBytes: peakMemoryBytes(), seen: seen,
            classes: classes, map: map, boxes: boxes
        )
    }

    /// Of a detector, whose rows are those that it says.
    private static func namedBoxes(_ given: Given, _ told: Description) -> [NamedBox]? {
        guard let rows = told.rows, let labels = told.labels, given.values.allSatisfy(\.isFinite),
            given.shape == [1, rows.count, rows.width(classes: labels.count)]
        else { return nil }
        return rows.find(given.values, classes: labels.count).map {
            NamedBox(name: labels[$0.label], hue: Double($0.label) / Double(labels.count), found: $0)
        }
    }

    private static func classMap(_ given: Given) -> ClassMap? {
        guard given.shape.count == 4, given.shape[0] == 1 else { return nil }
        let (classes, height, width) = (given.shape[1], given.shape[2], given.shape[3])
        let found = likeliest(given.values, heightPx: height, widthPx: width, classes: classes, channelsLast: false)
        return ClassMap(heightPx: height, widthPx: width, classes: classes, likeliest: found)
    }

    private static func milliseconds(since start: DispatchTime) -> Double {
        Double(DispatchTime.now().uptimeNanoseconds - start.uptimeNanoseconds) / 1e6
    }

    /// The most memory that the app has held since it began, as iOS counts it against an app.
    private static func peakMemoryBytes() -> Int64? {
        var info = task_vm_info_data_t()
        var count = mach_msg_type_number_t(MemoryLayout<task_vm_info_data_t>.size / MemoryLayout<natural_t>.size)
        let status = withUnsafeMutablePointer(to: &info) {
            $0.withMemoryRebound(to: integer_t.self, capacity: Int(count)) {
                task_info(mach_task_self_, task_flavor_t(TASK_VM_INFO), $0, &count)
            }
        }
        return status == KERN_SUCCESS ? Int64(info.ledger_phys_footprint_peak) : nil
    }
}
