//! Progress of long work: a bar on a terminal, nothing elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use fs_core::package::publish::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::interrupt::Interrupt;

/// A bar that also carries the interrupt into the work it shows.
pub(crate) struct Bar {
    bar: ProgressBar,
    interrupt: Interrupt,
}

impl Bar {
    /// A bar on standard error if that is a terminal and `quiet` is off.
    pub(crate) fn new(quiet: bool, interrupt: Interrupt) -> Self {
        let visible = !quiet && std::io::stderr().is_terminal();
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let style = ProgressStyle::with_template("{wide_msg} {bytes}/{total_bytes} {bytes_per_sec} {bar:20} {eta}")
            .expect("the template is a constant that parses");
        bar.set_style(style);
        if visible {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self { bar, interrupt }
    }

    /// The bar, for whoever prints lines while it is shown.
    pub(crate) fn lines(&self) -> ProgressBar {
        self.bar.clone()
    }

    /// Sets the whole state at once, as an agent reports it.
    pub(crate) fn show(&self, done: u64, total: u64, message: &str) {
        if total > 0 {
            self.bar.set_length(total);
        }
        self.bar.set_position(done);
        self.bar.set_message(message.to_owned());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bar {
    fn total(&self, bytes: u64, files: u64) {
        self.bar.set_length(bytes);
        self.bar.set_message(format!("{files} files"));
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn message(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }

    fn cancelled(&self) -> bool {
        self.interrupt.signalled().is_some()
    }
}
