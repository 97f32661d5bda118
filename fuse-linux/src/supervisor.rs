//! Placeholder.
pub fn run(mut command: std::process::Command) -> std::io::Result<std::process::ExitStatus> {
    command.status()
}
