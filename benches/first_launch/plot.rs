//! Times to the first launch as bars: a panel for each application and network.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::columns::Column;
use crate::report::{Report, Row};

const PANEL: (i32, i32) = (430, 40);
const BAR: i32 = 20;
/// From a panel's left to where its bars begin.
const LABELS: i32 = 150;
/// Right of the longest bar, for its number.
const NUMBERS: i32 = 70;

fn colour(column: Column) -> RGBColor {
    match column {
        Column::Streamfs => RGBColor(0, 107, 164),
        Column::StreamfsNoProfile => RGBColor(95, 158, 209),
        Column::Floor => RGBColor(200, 82, 0),
        Column::Local => RGBColor(170, 170, 170),
        _ => RGBColor(120, 120, 120),
    }
}

/// Writes the plot as SVG.
pub(crate) fn write(report: &Report, path: &Path) -> Result<()> {
    let apps: Vec<_> = report.facts.keys().copied().collect();
    let profiles: Vec<_> = report.links.iter().map(|(profile, _)| profile).collect();
    let bars = Column::ALL.len().min(
        apps.iter()
            .flat_map(|app| profiles.iter().map(move |p| (app, p)))
            .map(|(app, p)| report.rows.iter().filter(|r| r.app == *app && r.profile == **p).count())
            .max()
            .unwrap_or(0),
    );
    let height = PANEL.1 + bars as i32 * BAR;
    let size = (PANEL.0 * profiles.len() as i32, height * apps.len() as i32);
    let area = SVGBackend::new(path, (size.0.max(1) as u32, size.1.max(1) as u32)).into_drawing_area();
    // The drawing library's errors borrow from the area; their text is what is wanted.
    area.fill(&WHITE).map_err(|e| anyhow!("drawing: {e}"))?;
    for (y, app) in apps.iter().enumerate() {
        for (x, profile) in profiles.iter().enumerate() {
            let rows: Vec<&Row> = report.rows.iter().filter(|r| r.app == *app && r.profile == **profile).collect();
            let corner = (x as i32 * PANEL.0, y as i32 * height);
            let title = format!(
                "{} on {} ({} ms, {} Mbit/s): seconds to the first launch",
                app.name(),
                profile.name,
                profile.round_trip_ms,
                profile.mbit_per_second
            );
            panel(&area, corner, &title, &rows).map_err(|e| anyhow!("drawing: {e}"))?;
        }
    }
    area.present().map_err(|e| anyhow!("writing {}: {e}", path.display()))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type DrawError<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

fn panel<'a>(area: &Area<'a>, corner: (i32, i32), title: &str, rows: &[&Row]) -> Result<(), DrawError<'a>> {
    let text = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
    area.draw(&Text::new(title.to_owned(), (corner.0 + 8, corner.1 + 10), text(13)))?;
    // One contender that takes minutes must not make all others invisible.
    let spreads: Vec<_> = rows.iter().map(|row| row.spread(|s| s.first)).collect();
    let floor = rows.iter().zip(&spreads).find(|(row, _)| row.column == Column::Floor).and_then(|(_, s)| *s);
    let longest = spreads.iter().flatten().map(|s| s.max).fold(0.0, f64::max);
    let scale = floor.map_or(longest, |f| longest.min(f.median * 8.0)).max(f64::MIN_POSITIVE);
    let width = f64::from(PANEL.0 - LABELS - NUMBERS);
    let at = |seconds: f64| corner.0 + LABELS + (seconds.min(scale) / scale * width) as i32;
    for (i, (row, spread)) in rows.iter().zip(&spreads).enumerate() {
        let top = corner.1 + 30 + i as i32 * BAR;
        let label = text(12).pos(Pos::new(HPos::Right, VPos::Center));
        let middle = top + BAR / 2;
        area.draw(&Text::new(row.column.title(), (corner.0 + LABELS - 6, middle), label))?;
        let value = text(12).pos(Pos::new(HPos::Left, VPos::Center));
        let Some(spread) = spread else {
            area.draw(&Text::new("failed", (corner.0 + LABELS + 4, middle), value))?;
            continue;
        };
        let bar = [(at(0.0), top + 3), (at(spread.median), top + BAR - 3)];
        area.draw(&Rectangle::new(bar, colour(row.column).filled()))?;
        area.draw(&PathElement::new([(at(spread.min), middle), (at(spread.max), middle)], BLACK))?;
        let cut = if spread.median > scale { " (bar cut)" } else { "" };
        let number = format!("{:.2}{cut}", spread.median);
        area.draw(&Text::new(number, (at(spread.max) + 5, middle), value))?;
    }
    Ok(())
}
