import SwiftUI

@main
struct EdgepruneApp: App {
    var body: some Scene {
        WindowGroup { TrialView() }
    }
}
