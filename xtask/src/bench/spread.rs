//! Minimum, median and maximum of repeated measurements.

use serde::{Deserialize, Serialize};

/// At least one measurement went in.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Spread {
    /// None when there are no measurements.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { min, median, max })
    }
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        let spread = Spread::of([4.0, 1.0, 10.0, 2.0]).expect("four values");
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 3.0, 10.0));
    }

    #[test]
    fn nothing_measured_is_no_spread() {
        assert!(Spread::of([]).is_none());
    }
}
