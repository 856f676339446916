//! Charts as SVG.

use std::path::Path;

use anyhow::{Context as _, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::statistics::Spread;

const SIZE: (u32, u32) = (960, 540);

/// How an axis counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    Logarithmic,
}

impl Scale {
    fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Logarithmic => value.max(1.0).log10(),
        }
    }

    /// How many places have labels; on a logarithmic axis, the decades.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a number of decades"
    )]
    fn labels(self, low: f64, high: f64) -> usize {
        match self {
            Self::Linear => 10,
            Self::Logarithmic => (high - low).ceil() as usize + 1,
        }
    }

    fn label(self, place: f64) -> String {
        match self {
            Self::Linear if place.fract() == 0.0 => format!("{place:.0}"),
            Self::Linear => format!("{place:.2}"),
            Self::Logarithmic => format!("{:.0}", 10_f64.powf(place)),
        }
    }
}

/// An axis.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    pub(crate) title: &'static str,
    pub(crate) scale: Scale,
}

/// A line of a chart.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// A chart of a subject.
#[derive(Clone, Debug)]
pub(crate) enum Chart {
    Lines {
        title: &'static str,
        x: Axis,
        y: Axis,
        lines: Vec<Line>,
    },
    /// For each group, the bar of each series.
    Bars {
        title: &'static str,
        y: &'static str,
        series: Vec<String>,
        groups: Vec<(String, Vec<Spread>)>,
    },
}

impl Chart {
    /// Writes the chart as SVG.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.svg()?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn svg(&self) -> Result<String> {
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            area.fill(&WHITE)?;
            match self {
                Self::Lines { title, x, y, lines } => draw_lines(&area, title, *x, *y, lines)?,
                Self::Bars {
                    title,
                    y,
                    series,
                    groups,
                } => draw_bars(&area, title, y, series, groups)?,
            }
            area.present()?;
        }
        Ok(svg)
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw_lines(area: &Area<'_>, title: &str, x: Axis, y: Axis, lines: &[Line]) -> Result<()> {
    let places = |line: &Line| -> Vec<(f64, f64)> {
        let points = line.points.iter();
        points
            .map(|point| (x.scale.place(point.0), y.scale.place(point.1)))
            .collect()
    };
    let all: Vec<(f64, f64)> = lines.iter().flat_map(places).collect();
    let (left, right) = range(all.iter().map(|point| point.0));
    let (bottom, top) = range(all.iter().map(|point| point.1));
    let bottom = match y.scale {
        Scale::Linear => bottom.min(0.0),
        Scale::Logarithmic => bottom.floor(),
    };
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .margin_right(40)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(left..right, bottom..top + (top - bottom) / 20.0)?;
    chart
        .configure_mesh()
        .x_labels(x.scale.labels(left, right))
        .y_labels(y.scale.labels(bottom, top))
        .x_desc(x.title)
        .y_desc(y.title)
        .x_label_formatter(&|place| x.scale.label(*place))
        .y_label_formatter(&|place| y.scale.label(*place))
        .light_line_style(WHITE)
        .draw()?;
    for (number, line) in lines.iter().enumerate() {
        let color = Palette99::pick(number).to_rgba();
        chart
            .draw_series(LineSeries::new(places(line), color.stroke_width(2)).point_size(3))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color));
    }
    draw_legend(&mut chart, SeriesLabelPosition::MiddleLeft)
}

fn draw_bars(
    area: &Area<'_>,
    title: &str,
    y: &str,
    series: &[String],
    groups: &[(String, Vec<Spread>)],
) -> Result<()> {
    let values = || groups.iter().flat_map(|(_, bars)| bars);
    let (bottom, _) = range(values().map(|bar| bar.low));
    let (_, top) = range(values().map(|bar| bar.high));
    // Room for the names of the groups, and beside the last for the legend.
    let top = top * 1.25;
    let legend = 0.15 * groups.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(12)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..groups.len() as f64 + legend, bottom.min(0.0)..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_desc(y)
        .light_line_style(WHITE)
        .draw()?;
    // A group is 1 wide, a quarter of it empty.
    let width = 0.75 / series.len() as f64;
    for (number, name) in series.iter().enumerate() {
        let color = Palette99::pick(number).to_rgba();
        let bars = groups.iter().enumerate().filter_map(|(group, (_, bars))| {
            let left = group as f64 + 0.125 + number as f64 * width;
            Some((left, bars.get(number)?))
        });
        chart
            .draw_series(bars.clone().map(|(left, bar)| {
                let corners = [(left, 0.0), (left + width, bar.median)];
                Rectangle::new(corners, color.mix(0.7).filled())
            }))?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], color.filled()));
        chart.draw_series(bars.map(|(left, bar)| {
            let middle = left + width / 2.0;
            PathElement::new([(middle, bar.low), (middle, bar.high)], BLACK)
        }))?;
    }
    let style = ("sans-serif", 13)
        .into_text_style(area)
        .pos(Pos::new(HPos::Center, VPos::Top));
    chart.draw_series(groups.iter().enumerate().map(|(group, (name, _))| {
        Text::new(
            name.clone(),
            (group as f64 + 0.5, top * 0.98),
            style.clone(),
        )
    }))?;
    draw_legend(&mut chart, SeriesLabelPosition::MiddleRight)
}

fn draw_legend<'a, C: CoordTranslate>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, C>,
    position: SeriesLabelPosition,
) -> Result<()> {
    chart
        .configure_series_labels()
        .position(position)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let empty = (f64::INFINITY, f64::NEG_INFINITY);
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold(empty, |(low, high), value| {
            (low.min(value), high.max(value))
        });
    if low < high {
        (low, high)
    } else {
        (0.0, high.max(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_names_and_decades() {
        let axis = |title| Axis {
            title,
            scale: Scale::Logarithmic,
        };
        let chart = Chart::Lines {
            title: "how it grows",
            x: axis("bytes"),
            y: axis("instructions"),
            lines: vec![Line {
                name: "peer new".to_owned(),
                points: vec![(10.0, 100.0), (1_000.0, 10_000.0)],
            }],
        };
        let svg = chart.svg().unwrap();
        for text in [
            "how it grows",
            "bytes",
            "instructions",
            "peer new",
            "\n1000\n",
            "<polyline",
        ] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
    }

    #[test]
    fn bars_have_names_and_groups() {
        let bar = Spread::of(&[1.0, 2.0, 3.0]);
        let chart = Chart::Bars {
            title: "what is added",
            y: "microseconds",
            series: vec!["noop".to_owned(), "filter".to_owned()],
            groups: vec![("inbound".to_owned(), vec![bar, bar])],
        };
        let svg = chart.svg().unwrap();
        for text in ["what is added", "noop", "filter", "inbound", "<rect"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
    }

    #[test]
    fn an_empty_chart_can_be_drawn() {
        let axis = Axis {
            title: "",
            scale: Scale::Linear,
        };
        let chart = Chart::Lines {
            title: "",
            x: axis,
            y: axis,
            lines: Vec::new(),
        };
        assert!(chart.svg().is_ok());
    }
}
