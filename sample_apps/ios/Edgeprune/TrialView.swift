import EdgepruneCore
import PhotosUI
import SwiftUI
import UniformTypeIdentifiers

/// One screen: choose a photo, a file and where it runs; see the classes, the map or the boxes, bytes, times and memory.
struct TrialView: View {
    @State private var photo: RGBImage?
    @State private var picked: PhotosPickerItem?
    @State private var file: URL?
    @State private var units = Units.all
    @State private var outcome: Outcome?
    @State private var showsFiles = false
    @State private var showsCamera = false

    var body: some View {
        NavigationStack {
            Form {
                Section {
                    PhotosPicker("Choose a photo", selection: $picked, matching: .images)
                    if UIImagePickerController.isSourceTypeAvailable(.camera) {
                        Button("Take a photo") { showsCamera = true }
                    }
                    Button(file?.lastPathComponent ?? "Open a file of a run") { showsFiles = true }
                    Picker("Runs on", selection: $units) {
                        ForEach(Units.allCases) { Text($0.title).tag($0) }
                    }
                    Button("Run") { Task { await run() } }.disabled(photo == nil || file == nil)
                }
                switch outcome {
                case .running: ProgressView()
                case .failed(let words): Text(words)
                case .done(let trial): TrialSection(trial: trial)
                case nil: EmptyView()
                }
            }
            .navigationTitle("edgeprune")
        }
        .fileImporter(isPresented: $showsFiles, allowedContentTypes: [.folder, .package, .item]) { chosen in
            do {
                file = try ModelFile.imported(from: chosen.get())
            } catch {
                outcome = .failed(error.localizedDescription)
            }
        }
        .sheet(isPresented: $showsCamera) {
            Camera { photo = pixels(of: $0) }
        }
        .onChange(of: picked) { item in
            Task {
                let data = try? await item?.loadTransferable(type: Data.self)
                photo = data.flatMap(UIImage.init(data:)).flatMap(pixels(of:))
            }
        }
    }

    @MainActor private func run() async {
        guard let photo, let file else { return }
        outcome = .running
        do {
            outcome = .done(try await Trial.of(file, photo, units))
        } catch {
            outcome = .failed(error.localizedDescription)
        }
    }

    private enum Outcome {
        case running
        case failed(String)
        case done(Trial)
    }
}

/// What came of a trial.
private struct TrialSection: View {
    let trial: Trial

    var body: some View {
        Section {
            ForEach(trial.classes, id: \.name) { found in
                LabeledContent(found.name, value: found.probability.formatted(.percent.precision(.fractionLength(1))))
            }
            if let map = trial.map.flatMap(picture(of:)) {
                Image(decorative: map, scale: 1).resizable().interpolation(.none).scaledToFit()
            }
            if let boxes = trial.boxes, boxes.isEmpty { Text("No boxes.") }
            if let seen = picture(of: trial.seen) {
                Image(decorative: seen, scale: 1).resizable().interpolation(.none).scaledToFit()
                    .overlay { BoxesOverlay(boxes: trial.boxes ?? [], widthPx: trial.seen.widthPx, heightPx: trial.seen.heightPx) }
            }
        }
        Section {
            LabeledContent("Bytes", value: trial.bytes.formatted())
            LabeledContent("Loaded in", value: milliseconds(trial.loadMs))
            LabeledContent("Median of \(Trial.runs)", value: milliseconds(trial.spread.median))
            LabeledContent("Quartiles", value: "\(milliseconds(trial.spread.low)) to \(milliseconds(trial.spread.high))")
            if let peak = trial.peakMemoryBytes {
                LabeledContent("Most memory, whole app", value: peak.formatted(.byteCount(style: .memory)))
            }
        }
    }

    private func milliseconds(_ value: Double) -> String {
        "\(value.formatted(.number.precision(.fractionLength(2)))) ms"
    }
}

/// Boxes over the picture they were found in, each in its class's colour with its name and how likely it is.
private struct BoxesOverlay: View {
    let boxes: [NamedBox]
    let widthPx: Int
    let heightPx: Int

    var body: some View {
        Canvas { context, size in
            let (across, down) = (size.width / CGFloat(widthPx), size.height / CGFloat(heightPx))
            for named in boxes.reversed() { // The likeliest is drawn last, above the others.
                let box = named.found.box
                let frame = CGRect(
                    x: CGFloat(box.x1) * across, y: CGFloat(box.y1) * down, width: CGFloat(box.x2 - box.x1) * across,
                    height: CGFloat(box.y2 - box.y1) * down
                )
                let colour = Color(hue: named.hue, saturation: 0.9, brightness: 0.9)
                let score = Double(named.found.score).formatted(.percent.precision(.fractionLength(0)))
                context.stroke(Path(frame), with: .color(colour), lineWidth: 2)
                context.draw(
                    Text("\(named.name) \(score)").font(.caption).foregroundColor(colour), at: frame.origin, anchor: .bottomLeading
                )
            }
        }
        .accessibilityLabel("\(boxes.count) boxes")
    }
}

/// UIKit's camera.
private struct Camera: UIViewControllerRepresentable {
    let taken: (UIImage) -> Void
    @Environment(\.dismiss) private var dismiss

    func makeUIViewController(context: Context) -> UIImagePickerController {
        let picker = UIImagePickerController()
        picker.sourceType = .camera
        picker.delegate = context.coordinator
        return picker
    }

    func updateUIViewController(_ controller: UIImagePickerController, context: Context) {}

    func makeCoordinator() -> Coordinator { Coordinator(self) }

    final class Coordinator: NSObject, UIImagePickerControllerDelegate, UINavigationControllerDelegate {
        private let camera: Camera

        init(_ camera: Camera) {
            self.camera = camera
        }

        func imagePickerController(
            _ picker: UIImagePickerController, didFinishPickingMediaWithInfo info: [UIImagePickerController.InfoKey: Any]
        ) {
            if let image = info[.originalImage] as? UIImage { camera.taken(image) }
            camera.dismiss()
        }
    }
}
