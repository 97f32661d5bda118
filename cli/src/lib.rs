//! The `streamfs` command line: one file a subcommand, and the agent that hosts mounts.
//!
//! ```text
//! arguments   what can be asked
//! settings    flag > environment > settings file > default
//! commands/   one file a subcommand: checks, asks the agent, prints
//! agent/      the process that owns a cache directory: client, protocol, server, mounts
//! ```
//!
//! Commands print facts to standard output and everything else to standard error. The exit status is 0 only on
//! success, 1 on failure, 2 for a command line that cannot be understood, and 128 plus the signal after an interrupt.
//!
//! The file system itself is not here: reading packages is `fs-core`, mounting is `fuse-linux`.

pub mod arguments;
pub mod commands;
pub mod settings;

mod agent;
mod child;
mod interrupt;
mod launch_report;
mod logins;
mod mount_point;
mod private_mount;
mod progress;
mod report;
mod secret_input;
mod service_manager;
mod trust_report;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;

use arguments::{Arguments, Command};
use commands::Context;

/// Runs one command line, the program's name first, and tells with what status to exit.
pub fn run<I, T>(args: I) -> ExitCode
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are "errors" that print to standard output; a reader that left is no failure.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run_command(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(line) = report::error_line(&error) {
                // Standard error may be closed too; there is nobody left to tell then.
                let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("streamfs: {line}\n").as_bytes());
            }
            ExitCode::from(report::exit_code(&error))
        }
    }
}

fn run_command(arguments: Arguments) -> anyhow::Result<()> {
    // The supervisor must stay a small process of one thread: it starts no runtime.
    if let Command::Agent(agent) = &arguments.command {
        return commands::agent::supervise(agent);
    }
    if !matches!(arguments.command, Command::AgentWorker(_)) {
        report::start_logging(arguments.global.verbose);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the program's threads")?;
    let result = runtime.block_on(async {
        // A server takes SIGHUP for being asked to read its settings again.
        let hang_up_ends = !matches!(arguments.command, Command::Serve(_));
        let context = Context::new(&arguments.global, hang_up_ends)?;
        commands::dispatch(arguments.command, &context).await
    });
    // Work that was abandoned on an interrupt must not hold the exit up.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}
