//! What is measured.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

/// The command line.
pub(crate) struct Options {
    pub(crate) tree: PathBuf,
    pub(crate) runs: usize,
    pub(crate) user: Option<u32>,
    pub(crate) json: Option<PathBuf>,
    pub(crate) variants: Vec<Variant>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) command: Vec<String>,
}

/// A way to mount: a name and the settings that the server is given.
pub(crate) struct Variant {
    pub(crate) name: String,
    pub(crate) settings: Vec<String>,
}

impl Options {
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut tree = None;
        let mut options = Options {
            tree: PathBuf::new(),
            runs: 7,
            user: None,
            json: None,
            variants: Vec::new(),
            environment: Vec::new(),
            command: Vec::new(),
        };
        while let Some(flag) = arguments.next() {
            if flag == "--" {
                options.command = arguments.by_ref().collect();
                break;
            }
            let value = arguments.next().with_context(|| format!("{flag} needs a value"))?;
            match flag.as_str() {
                "--tree" => tree = Some(PathBuf::from(value)),
                "--runs" => options.runs = value.parse().context("--runs takes a number")?,
                "--user" => options.user = Some(value.parse().context("--user takes a number")?),
                "--json" => options.json = Some(value.into()),
                "--env" => options.environment.push(pair(&value, '=')?),
                "--variant" => {
                    let (name, settings) = pair(&value, ':')?;
                    let settings = settings.split(',').filter(|s| !s.is_empty()).map(str::to_owned).collect();
                    options.variants.push(Variant { name, settings });
                }
                _ => bail!("unknown argument {flag}"),
            }
        }
        options.tree = tree.context("--tree DIR is missing")?;
        ensure!(!options.command.is_empty(), "-- COMMAND is missing");
        ensure!(options.runs > 0, "--runs must be at least 1");
        if options.variants.is_empty() {
            options.variants.push(Variant { name: "default".into(), settings: Vec::new() });
        }
        Ok(options)
    }
}

/// Cuts `text` at the first `separator`.
pub(crate) fn pair(text: &str, separator: char) -> Result<(String, String)> {
    let (first, second) = text.split_once(separator).with_context(|| format!("{text} has no {separator}"))?;
    Ok((first.to_owned(), second.to_owned()))
}
