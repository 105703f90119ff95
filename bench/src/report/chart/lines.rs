//! Lines over a logarithmic horizontal axis, with a mark at each point.

use super::{Anchor, BOTTOM, Canvas, LEFT, RIGHT, Scale, TOP, Unit, colour};

/// One line.
pub(crate) struct Series {
    pub(crate) name: String,
    /// Which colour; lines of the same thing share it.
    pub(crate) colour: usize,
    /// Dashed, with hollow marks.
    pub(crate) dashed: bool,
    /// From left to right; both above 0.
    pub(crate) points: Vec<(f64, f64)>,
}

/// A chart of lines.
pub(crate) struct Lines {
    pub(crate) title: String,
    pub(crate) x_title: &'static str,
    /// The labelled places of the horizontal axis, from left to right.
    pub(crate) x_ticks: Vec<(f64, String)>,
    pub(crate) y_title: &'static str,
    pub(crate) unit: Unit,
    /// Whether the vertical axis is logarithmic.
    pub(crate) logarithmic: bool,
    pub(crate) series: Vec<Series>,
}

/// Pixels that a label of the horizontal axis may take.
const LABEL_WIDTH: f64 = 48.0;

impl Lines {
    pub(crate) fn svg(&self) -> String {
        let points = self.series.iter().flat_map(|series| &series.points);
        let numbers: Vec<f64> = points.map(|point| point.1).collect();
        let scale = Scale::over(&numbers, self.logarithmic);
        let mut canvas = Canvas::new(&self.title, self.unit, self.y_title, &scale);
        canvas.x_title(self.x_title);
        let mut free_from = f64::MIN;
        for (at, label) in &self.x_ticks {
            let x = self.x(*at);
            canvas.line((x, BOTTOM), (x, BOTTOM + 5.0), "#777777");
            // What has no room beside its neighbour stands below it.
            let (y, taken) = if x >= free_from {
                (BOTTOM + 20.0, x + LABEL_WIDTH)
            } else {
                (BOTTOM + 35.0, free_from)
            };
            canvas.label((x, y), Anchor::Middle, label);
            free_from = taken;
        }
        for (row, series) in self.series.iter().enumerate() {
            self.draw(&mut canvas, &scale, series);
            legend(&mut canvas, row, series);
        }
        canvas.finish()
    }

    fn x(&self, at: f64) -> f64 {
        let first = self.x_ticks.first().map_or(1.0, |tick| tick.0);
        let last = self.x_ticks.last().map_or(1.0, |tick| tick.0);
        let margin = 24.0;
        let share = if last > first {
            (at / first).ln() / (last / first).ln()
        } else {
            0.5
        };
        LEFT + margin + share * (RIGHT - LEFT - 2.0 * margin)
    }

    fn draw(&self, canvas: &mut Canvas, scale: &Scale, series: &Series) {
        let colour = colour(series.colour);
        let places: Vec<(f64, f64)> = series
            .points
            .iter()
            .map(|(x, y)| (self.x(*x), scale.y(*y)))
            .collect();
        let path: Vec<String> = places
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        canvas.add(format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{}/>",
            path.join(" "),
            dashes(series)
        ));
        for place in places {
            mark(canvas, place, series);
        }
    }
}

fn dashes(series: &Series) -> &'static str {
    if series.dashed {
        " stroke-dasharray=\"6 4\""
    } else {
        ""
    }
}

fn mark(canvas: &mut Canvas, (x, y): (f64, f64), series: &Series) {
    let colour = colour(series.colour);
    let fill = if series.dashed { "#ffffff" } else { colour };
    canvas.add(format_args!(
        "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{fill}\" stroke=\"{colour}\" stroke-width=\"1.5\"/>"
    ));
}

fn legend(canvas: &mut Canvas, row: usize, series: &Series) {
    let (x, y) = (RIGHT + 16.0, TOP + 10.0 + row as f64 * 21.0);
    canvas.add(format_args!(
        "<line x1=\"{x}\" y1=\"{y}\" x2=\"{}\" y2=\"{y}\" stroke=\"{}\" stroke-width=\"2\"{}/>",
        x + 28.0,
        colour(series.colour),
        dashes(series)
    ));
    mark(canvas, (x + 14.0, y), series);
    canvas.label((x + 36.0, y + 4.0), Anchor::Start, &series.name);
}
