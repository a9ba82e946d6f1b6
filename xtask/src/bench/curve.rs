//! A curve of cost against number of sessions as an SVG picture, both axes logarithmic.

use super::report::{Chart, Point};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 48.0;
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];

impl Chart {
    pub(super) const ALL: [Self; 2] = [Self::Translation, Self::Packet];

    pub(super) fn file(self) -> &'static str {
        match self {
            Self::Translation => "performance-translation.svg",
            Self::Packet => "performance-packet.svg",
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Translation => "The program alone: ns a packet against sessions",
            Self::Packet => "A packet's whole way on one core: ns against sessions",
        }
    }
}

/// A scale from powers of ten to a range of the picture.
struct Axis {
    first: i32,
    last: i32,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Self {
        let least = values.clone().fold(f64::INFINITY, f64::min).max(1.0);
        let most = values.fold(1.0, f64::max);
        let first = least.log10().floor() as i32;
        Self { first, last: (most.log10().ceil() as i32).max(first + 1), from, to }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value.log10() - f64::from(self.first)) / f64::from(self.last - self.first);
        self.from + share * (self.to - self.from)
    }

    fn powers(&self) -> impl Iterator<Item = f64> {
        (self.first..=self.last).map(|power| 10f64.powi(power))
    }
}

/// The picture of `chart`; none without points.
pub(super) fn draw(chart: Chart, points: &[Point]) -> Option<String> {
    let points: Vec<&Point> = points.iter().filter(|point| point.chart == chart).collect();
    let mut series: Vec<&str> = Vec::new();
    for point in &points {
        if !series.contains(&point.series.as_str()) {
            series.push(&point.series);
        }
    }
    if series.is_empty() {
        return None;
    }
    let x = Axis::over(points.iter().map(|it| f64::from(it.sessions)), LEFT, WIDTH - RIGHT);
    let y = Axis::over(points.iter().map(|it| it.nanoseconds.median), HEIGHT - BOTTOM, TOP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>\n",
        chart.title()
    );
    for power in x.powers() {
        let at = x.place(power);
        svg += &line(at, TOP, at, HEIGHT - BOTTOM);
        svg += &text(at, HEIGHT - BOTTOM + 18.0, "middle", &grouped(power));
    }
    for power in y.powers() {
        let at = y.place(power);
        svg += &line(LEFT, at, WIDTH - RIGHT, at);
        svg += &text(LEFT - 6.0, at + 4.0, "end", &grouped(power));
    }
    svg += &text(f64::midpoint(LEFT, WIDTH - RIGHT), HEIGHT - 8.0, "middle", "sessions");
    for (name, colour) in series.iter().zip(COLOURS.iter().cycle()) {
        let mut of_series: Vec<_> = points.iter().filter(|it| it.series == *name).collect();
        of_series.sort_by_key(|point| point.sessions);
        let place = |point: &&&Point| {
            (x.place(f64::from(point.sessions)), y.place(point.nanoseconds.median))
        };
        let corners: Vec<String> =
            of_series.iter().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        svg += &format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n",
            corners.join(" ")
        );
        for point in &of_series {
            let (x, y) = place(point);
            svg += &format!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"><title>{name}, {} \
                 sessions: {:.0} ns</title></circle>\n",
                point.sessions, point.nanoseconds.median
            );
        }
        if let Some((end, height)) = of_series.last().map(place) {
            svg += &format!(
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>\n",
                end + 8.0,
                height + 4.0
            );
        }
    }
    Some(svg + "</svg>\n")
}

fn line(x1: f64, y1: f64, x2: f64, y2: f64) -> String {
    format!("<path d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\" stroke=\"#ddd\"/>\n")
}

fn text(x: f64, y: f64, anchor: &str, words: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>\n")
}

/// A power of ten from 1 on, with commas.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
