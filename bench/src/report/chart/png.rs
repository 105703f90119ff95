//! A chart as PNG. The font is part of this program, so that a picture is the same on every machine.

use resvg::{tiny_skia, usvg};

/// Pixels of the picture for each unit of the chart: sharp on a dense screen and in print.
const SCALE: f32 = 2.0;

/// The picture of a chart, or why there is none.
pub(crate) fn png(svg: &str) -> Result<Vec<u8>, String> {
    let mut options = usvg::Options {
        font_family: "DejaVu Sans".to_owned(),
        ..usvg::Options::default()
    };
    options
        .fontdb_mut()
        .load_font_data(dejavu::sans::regular().to_vec());
    let tree = usvg::Tree::from_str(svg, &options).map_err(|error| error.to_string())?;
    let size = tree.size();
    let (width, height) = (
        (size.width() * SCALE) as u32,
        (size.height() * SCALE) as u32,
    );
    let mut pixels = tiny_skia::Pixmap::new(width, height).ok_or("the picture is too large")?;
    let transform = tiny_skia::Transform::from_scale(SCALE, SCALE);
    resvg::render(&tree, transform, &mut pixels.as_mut());
    pixels.encode_png().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts are drawn: a picture without the font would be one without them.
    #[test]
    fn a_text_makes_the_picture_another_one() {
        let picture = |text: &str| {
            png(&format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"60\" height=\"20\"><rect width=\"60\" height=\"20\" \
                 fill=\"#ffffff\"/><text x=\"2\" y=\"15\" font-family=\"'DejaVu Sans', Verdana\">{text}</text></svg>"
            ))
            .unwrap()
        };
        let empty = picture("");
        assert_eq!(&empty[..8], b"\x89PNG\r\n\x1a\n");
        assert_ne!(empty, picture("12 µs"));
        assert_ne!(picture("12 µs"), picture("13 µs"));
    }

    #[test]
    fn what_is_no_svg_is_refused() {
        assert!(png("<svg").is_err());
    }
}
