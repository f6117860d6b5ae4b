//! What is told of figures that were taken several times.

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    quantile(values, 0.5)
}

/// The value below which this share of them lies, between two neighbours if need be.
pub(crate) fn quantile(values: impl Iterator<Item = f64>, share: f64) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let place = share * last as f64;
    let below = place as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_lies_between_the_middle_two() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        let five = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(quantile(five.into_iter(), 0.25), 2.0);
        assert_eq!(quantile(five.into_iter(), 0.75), 4.0);
        assert_eq!(quantile([7.0].into_iter(), 0.75), 7.0);
        assert!(quantile([].into_iter(), 0.5).is_nan());
    }
}
