//! Charts as SVG: what lines and bars have in common.
//!
//! Guarantees: every text is escaped, every coordinate finite; all of it is in one file that needs nothing else. The
//! colours are told apart by people who see no red or green. Does not: choose what is shown; the sections do.

mod bars;
mod lines;
mod png;

pub(crate) use bars::Bars;
pub(crate) use lines::{Lines, Series};
pub(crate) use png::png;

use std::fmt::Write as _;

use super::figure;
use super::html::escaped;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 460.0;
/// The area of the data.
const LEFT: f64 = 84.0;
const RIGHT: f64 = 690.0;
const TOP: f64 = 46.0;
const BOTTOM: f64 = 396.0;

const COLOURS: [&str; 9] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b5b5b", "#882255",
    "#999933",
];

fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

/// What an axis counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Given in microseconds.
    Latency,
    /// Given in milliseconds.
    Time,
    /// Per second.
    Rate,
    MibPerSecond,
}

impl Unit {
    fn shown(self, number: f64) -> String {
        match self {
            Unit::Latency => figure::short(&figure::latency(number)),
            Unit::Time => figure::short(&figure::time(number)),
            Unit::Rate | Unit::MibPerSecond => figure::short(&figure::count(number)),
        }
    }
}

/// The vertical axis.
struct Scale {
    logarithmic: bool,
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Scale {
    /// An axis on which all numbers have room. They are above 0 where the axis is logarithmic.
    fn over(numbers: &[f64], logarithmic: bool) -> Scale {
        let most = numbers.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        if logarithmic {
            let least = numbers.iter().copied().fold(most, f64::min);
            return Scale::logarithmic(least, most);
        }
        let rough = most / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0]
            .into_iter()
            .map(|step| step * power)
            .find(|step| *step >= rough)
            .unwrap_or(10.0 * power);
        let steps = (most / step).ceil().max(1.0);
        Scale {
            logarithmic,
            low: 0.0,
            high: steps * step,
            ticks: (0..=steps as u32)
                .map(|tick| f64::from(tick) * step)
                .collect(),
        }
    }

    fn logarithmic(least: f64, most: f64) -> Scale {
        let first = least.log10().floor() as i32;
        let last = (most.log10() + 1e-9).ceil() as i32;
        let steps: &[f64] = if last - first > 3 {
            &[1.0]
        } else {
            &[1.0, 2.0, 5.0]
        };
        let all: Vec<f64> = (first..=last)
            .flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)))
            .collect();
        // From the last tick below everything to the first one above.
        let low = all
            .iter()
            .rposition(|tick| *tick <= least * (1.0 + 1e-9))
            .unwrap_or(0);
        let high = all
            .iter()
            .position(|tick| *tick >= most * (1.0 - 1e-9))
            .unwrap_or(all.len() - 1);
        let high = if high > low {
            high
        } else {
            (low + 1).min(all.len() - 1)
        };
        let low = if high > low { low } else { high - 1 };
        Scale {
            logarithmic: true,
            low: all[low],
            high: all[high],
            ticks: all[low..=high].to_vec(),
        }
    }

    /// The height at which a number stands.
    fn y(&self, number: f64) -> f64 {
        let share = if self.logarithmic {
            (number / self.low).ln() / (self.high / self.low).ln()
        } else {
            (number - self.low) / (self.high - self.low)
        };
        BOTTOM - share.clamp(0.0, 1.0) * (BOTTOM - TOP)
    }
}

/// An SVG that is being drawn.
struct Canvas {
    text: String,
}

/// Where a text stands with respect to its place.
#[derive(Clone, Copy)]
enum Anchor {
    Start,
    Middle,
    End,
}

impl Canvas {
    /// The frame: title, vertical axis with its grid, and what it counts.
    fn new(title: &str, unit: Unit, y_title: &str, scale: &Scale) -> Canvas {
        let mut canvas = Canvas {
            text: format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
                 font-family=\"'DejaVu Sans', Verdana, sans-serif\" font-size=\"12\" role=\"img\">\n\
                 <title>{}</title>\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n",
                escaped(title)
            ),
        };
        canvas.add(format_args!(
            "<text x=\"{LEFT}\" y=\"24\" font-size=\"15\" fill=\"#222222\">{}</text>",
            escaped(title)
        ));
        for tick in &scale.ticks {
            let y = scale.y(*tick);
            canvas.line((LEFT, y), (RIGHT, y), "#e2e2e2");
            canvas.label((LEFT - 8.0, y + 4.0), Anchor::End, &unit.shown(*tick));
        }
        canvas.line((LEFT, BOTTOM), (RIGHT, BOTTOM), "#777777");
        let middle = (TOP + BOTTOM) / 2.0;
        let kind = if scale.logarithmic {
            ", logarithmic"
        } else {
            ""
        };
        canvas.add(format_args!(
            "<text x=\"18\" y=\"{middle}\" transform=\"rotate(-90 18 {middle})\" text-anchor=\"middle\" fill=\"#444444\">{}{kind}</text>",
            escaped(y_title)
        ));
        canvas
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{element}").expect("a String takes every text");
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str) {
        self.add(format_args!(
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>",
            from.0, from.1, to.0, to.1
        ));
    }

    fn label(&mut self, at: (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        self.add(format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" fill=\"#444444\">{}</text>",
            at.0,
            at.1,
            escaped(text)
        ));
    }

    fn x_title(&mut self, text: &str) {
        self.label(((LEFT + RIGHT) / 2.0, HEIGHT - 14.0), Anchor::Middle, text);
    }

    fn finish(mut self) -> String {
        self.text += "</svg>\n";
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logarithmic_axis_holds_everything_between_its_ends() {
        for (least, most) in [
            (3.0, 4.0),
            (1.0, 1.0),
            (0.2, 90_000.0),
            (150.0, 2_400.0),
            (9.99, 10.01),
        ] {
            let scale = Scale::over(&[least, most], true);
            assert!(
                scale.low <= least && most <= scale.high,
                "{least} {most}: {} {}",
                scale.low,
                scale.high
            );
            assert!(scale.low < scale.high && scale.ticks.len() >= 2);
            assert!(scale.y(least) >= scale.y(most));
        }
    }

    #[test]
    fn a_linear_axis_begins_at_zero_and_has_round_steps() {
        let scale = Scale::over(&[10.0, 67_000.0], false);
        assert_eq!(scale.ticks, [0.0, 20_000.0, 40_000.0, 60_000.0, 80_000.0]);
        assert_eq!((scale.y(0.0), scale.y(80_000.0)), (BOTTOM, TOP));
    }
}
