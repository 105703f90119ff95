//! Bars in groups, one colour for each system.

use super::{Anchor, BOTTOM, Canvas, LEFT, RIGHT, Scale, TOP, Unit, colour};

/// A chart of bars.
pub(crate) struct Bars {
    pub(crate) title: String,
    pub(crate) groups: Vec<String>,
    /// A name, and a number above 0 for each group, none where nothing was measured.
    pub(crate) systems: Vec<(String, Vec<Option<f64>>)>,
    pub(crate) y_title: &'static str,
    pub(crate) unit: Unit,
}

/// So many bars in a group have room for their numbers.
const LABELLED_MAX: usize = 3;

impl Bars {
    /// The vertical axis is logarithmic and begins below the smallest number.
    pub(crate) fn svg(&self) -> String {
        let numbers = self
            .systems
            .iter()
            .flat_map(|(_, numbers)| numbers.iter().flatten());
        let numbers: Vec<f64> = numbers.copied().collect();
        let least = numbers.iter().copied().fold(f64::INFINITY, f64::min);
        // The smallest bar has a height as well.
        let scale = Scale::over(&[numbers.as_slice(), &[least / 2.0]].concat(), true);
        let mut canvas = Canvas::new(&self.title, self.unit, self.y_title, &scale);
        let group_width = (RIGHT - LEFT) / self.groups.len() as f64;
        let bar_width = (group_width * 0.8 / self.systems.len() as f64).min(64.0);
        for (index, group) in self.groups.iter().enumerate() {
            let middle = LEFT + (index as f64 + 0.5) * group_width;
            canvas.label((middle, BOTTOM + 20.0), Anchor::Middle, group);
            let first = middle - bar_width * self.systems.len() as f64 / 2.0;
            for (system, (_, numbers)) in self.systems.iter().enumerate() {
                let Some(number) = numbers.get(index).copied().flatten() else {
                    continue;
                };
                let (x, y) = (first + system as f64 * bar_width, scale.y(number));
                canvas.add(format_args!(
                    "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>",
                    x + 1.0,
                    bar_width - 2.0,
                    BOTTOM - y,
                    colour(system)
                ));
                if self.systems.len() <= LABELLED_MAX {
                    let place = (x + bar_width / 2.0, y - 5.0);
                    canvas.label(place, Anchor::Middle, &self.unit.shown(number));
                }
            }
        }
        for (row, (name, _)) in self.systems.iter().enumerate() {
            let (x, y) = (RIGHT + 16.0, TOP + 4.0 + row as f64 * 21.0);
            canvas.add(format_args!(
                "<rect x=\"{x}\" y=\"{y}\" width=\"14\" height=\"14\" fill=\"{}\"/>",
                colour(row)
            ));
            canvas.label((x + 22.0, y + 11.0), Anchor::Start, name);
        }
        canvas.finish()
    }
}
