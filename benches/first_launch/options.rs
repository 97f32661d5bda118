//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::apps::AppName;
use crate::columns::Column;
use crate::link::Profile;
use crate::shaper::ShaperArguments;

/// How long does it take from nothing to an application that did its work, over a network with latency?
#[derive(Debug, Parser)]
#[command(name = "first-launch")]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    pub(crate) part: Option<Part>,
    #[command(flatten)]
    pub(crate) options: Options,
}

/// Parts that the benchmark starts as processes of their own.
#[derive(Debug, Subcommand)]
pub(crate) enum Part {
    /// Relay connections with delay and limited bandwidth
    Shaper(ShaperArguments),
}

/// What is measured.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Applications: python, node, chromium, libreoffice
    #[arg(long, value_delimiter = ',', default_values = ["python", "node", "chromium", "libreoffice"])]
    pub(crate) apps: Vec<AppName>,
    /// Networks: LAN (1 ms, 1 Gbit/s), WAN (40 ms, 100 Mbit/s), FAR (120 ms, 50 Mbit/s)
    #[arg(long, value_delimiter = ',', default_values = ["LAN", "WAN", "FAR"])]
    pub(crate) profiles: Vec<Profile>,
    /// Contenders: streamfs, streamfs-no-profile, floor, full, local, rclone, httpdirfs, sshfs, casync, nydus,
    /// nydus-list [default: all]
    #[arg(long, value_delimiter = ',')]
    pub(crate) columns: Vec<Column>,
    /// How often each is measured, in turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) runs: u32,
    /// How often the slow contenders of others are measured, which need minutes for a launch
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) peer_runs: u32,
    /// Writes every number here
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Writes first-launch.md and first-launch.svg into this folder
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// The program that is measured [default: beside this one]
    #[arg(long)]
    pub(crate) streamfs: Option<PathBuf>,
    /// Instead: the first application in a version of its own and in one with this many files more
    #[arg(long, num_args = 0..=1, default_missing_value = "1000000")]
    pub(crate) million: Option<u64>,
    /// Stalls a connection after about so many bytes, as lost packets do; 0 is never
    #[arg(long, default_value_t = 0)]
    pub(crate) stall_every_bytes: u64,
    /// How long a stall is, in milliseconds
    #[arg(long, default_value_t = 200)]
    pub(crate) stall_ms: u64,
    /// Measures also on links that are more than 10 % off what they should be
    #[arg(long)]
    pub(crate) inexact_links: bool,
    /// Uses applications and programs that are there, and neither builds nor downloads any
    #[arg(long)]
    pub(crate) no_build: bool,
    /// Sees in seconds that the benchmark works: a tiny application, once, on the LAN
    #[arg(long)]
    pub(crate) smoke: bool,
}

impl Options {
    /// Says what `--smoke` and an empty list of columns mean.
    pub(crate) fn resolved(mut self) -> Self {
        if self.smoke {
            self.apps = vec![AppName::Tiny];
            self.profiles = vec![crate::link::PROFILES[0].clone()];
            self.runs = 1;
            self.inexact_links = true;
            self.no_build = true;
            if self.columns.is_empty() {
                self.columns = vec![Column::StreamfsNoProfile, Column::Floor, Column::Full, Column::Local];
            }
        }
        if self.columns.is_empty() {
            self.columns = Column::ALL.to_vec();
        }
        self.columns.sort_unstable();
        self.columns.dedup();
        self
    }
}
