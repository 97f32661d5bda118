//! demo
use super::Context;
/// x
#[derive(Debug, clap::Args)]
pub struct DemoArguments {}
pub(super) async fn run(_arguments: DemoArguments, _context: &Context) -> anyhow::Result<()> {
    Ok(())
}
