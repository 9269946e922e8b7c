//! The table on the screen and the numbers in the file.

use std::time::Duration;

use serde::Serialize;

/// One row: times of calls, or a single value.
#[derive(Debug, Serialize)]
pub struct Row {
    name: String,
    unit: &'static str,
    /// How many calls or values it is of.
    n: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<f64>,
    /// The median or the value, as a multiple of what was measured in the same minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<Ratio>,
    promises: Vec<Promise>,
}

#[derive(Debug, Serialize)]
struct Ratio {
    to: String,
    value: f64,
}

#[derive(Debug, Serialize)]
struct Promise {
    text: String,
    /// What was promised, with the figures of this run in it.
    most: Option<f64>,
    least: Option<f64>,
    met: bool,
}

impl Row {
    pub fn p50(&self) -> f64 {
        self.p50.or(self.value).expect("a row has one of them")
    }

    pub fn to(&mut self, name: &str, figure: f64) -> &mut Self {
        self.ratio = Some(Ratio { to: name.to_owned(), value: self.p50() / figure });
        self
    }

    /// The median, or the value, is to be no more than this.
    pub fn at_most(&mut self, text: &str, most: f64) -> &mut Self {
        let met = self.p50() <= most;
        self.promises.push(Promise { text: text.to_owned(), most: Some(most), least: None, met });
        self
    }

    pub fn at_least(&mut self, text: &str, least: f64) -> &mut Self {
        let met = self.p50() >= least;
        self.promises.push(Promise { text: text.to_owned(), most: None, least: Some(least), met });
        self
    }

    pub fn p99_at_most(&mut self, text: &str, most: f64) -> &mut Self {
        let met = self.p99.is_some_and(|p99| p99 <= most);
        self.promises.push(Promise { text: text.to_owned(), most: Some(most), least: None, met });
        self
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:<64}", self.name)?;
        match (self.p50, self.p99) {
            (Some(p50), Some(p99)) => write!(f, " p50 {p50:>9.3} p99 {p99:>9.3} {:<4}", self.unit)?,
            _ => write!(f, " {:>27.1} {:<4}", self.p50(), self.unit)?,
        }
        write!(f, " n {:>5}", self.n)?;
        if let Some(ratio) = &self.ratio {
            write!(f, "  {:.2} x {}", ratio.value, ratio.to)?;
        }
        for Promise { text, most, least, met } in &self.promises {
            let bound = match (most, least) {
                (Some(most), _) => format!("<= {most:.3}"),
                (_, Some(least)) => format!(">= {least:.1}"),
                _ => String::new(),
            };
            let verdict = if *met { "met" } else { "NOT MET" };
            write!(f, "\n    {verdict}: {text} ({bound})")?;
        }
        Ok(())
    }
}

#[derive(Debug, Default, Serialize)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    pub fn times(&mut self, name: &str, times: &[Duration]) -> &mut Row {
        let (p50, p99) = (percentile(times, 0.5), percentile(times, 0.99));
        self.add(Row { p50: Some(p50), p99: Some(p99), ..row(name, "ms", times.len()) })
    }

    pub fn figure(&mut self, name: &str, unit: &'static str, n: usize, value: f64) -> &mut Row {
        self.add(Row { value: Some(value), ..row(name, unit, n) })
    }

    fn add(&mut self, row: Row) -> &mut Row {
        // Shown at once, since a run takes minutes; with its promises once it has them.
        if let Some(last) = self.rows.last() {
            println!("{last}");
        }
        self.rows.push(row);
        self.rows.last_mut().expect("it was just pushed")
    }

    pub fn write(&self, path: &str) {
        if let Some(last) = self.rows.last() {
            println!("{last}");
        }
        let text = serde_json::to_string_pretty(self).expect("figures are JSON");
        std::fs::write(path, text + "\n").unwrap_or_else(|error| panic!("{path}: {error}"));
        let promises: Vec<bool> =
            self.rows.iter().flat_map(|row| row.promises.iter().map(|promise| promise.met)).collect();
        let met = promises.iter().filter(|met| **met).count();
        println!("{met} of {} promises met; written to {path}", promises.len());
    }
}

fn row(name: &str, unit: &'static str, n: usize) -> Row {
    Row {
        name: name.to_owned(),
        unit,
        n,
        p50: None,
        p99: None,
        value: None,
        ratio: None,
        promises: Vec::new(),
    }
}

/// In milliseconds.
pub fn percentile(times: &[Duration], share: f64) -> f64 {
    let mut sorted: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}
