import Foundation

/// Files of a run: .mlpackage for Core ML, .aimodel for Core AI.
enum ModelFile {
    static func load(_ file: URL, _ units: Units) async throws -> LoadedModel {
        switch file.pathExtension {
        case "mlpackage": return try await CoreMLModel.load(file, units)
        case "aimodel":
            #if canImport(CoreAI)
            if #available(iOS 27, *) { return try await CoreAIModel.load(file) }
            #endif
            throw Refused("Core AI files run on iOS 27 and later.")
        default: throw Refused("\(file.lastPathComponent) is neither an .mlpackage nor an .aimodel.")
        }
    }

    /// A copy of a file or folder that the user chose, which the app may open again later.
    static func imported(from chosen: URL) throws -> URL {
        let allowed = chosen.startAccessingSecurityScopedResource()
        defer { if allowed { chosen.stopAccessingSecurityScopedResource() } }
        let copy = URL.documentsDirectory.appending(path: chosen.lastPathComponent)
        try? FileManager.default.removeItem(at: copy)
        try FileManager.default.copyItem(at: chosen, to: copy)
        return copy
    }

    /// Of a file, or of all files in a folder.
    static func bytes(of file: URL) -> Int {
        let keys: [URLResourceKey] = [.fileSizeKey, .isRegularFileKey]
        let inside = FileManager.default.enumerator(at: file, includingPropertiesForKeys: keys)?.compactMap { $0 as? URL } ?? []
        return (inside.isEmpty ? [file] : inside).reduce(0) { sum, url in
            let values = try? url.resourceValues(forKeys: Set(keys))
            return sum + (values?.isRegularFile == true ? values?.fileSize ?? 0 : 0)
        }
    }
}
