//! What the services say about themselves: log, metrics, and errors with their causes.

mod log;

use std::error::Error;
use std::fmt;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex};

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config;

/// Sends the log to stderr, or to its file, from now on. Once in a process; a second call is an error.
pub fn init(logging: &config::Logging) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut filter = EnvFilter::builder().parse(&logging.level)?;
    // At debug it writes down what it sends and gets: the words of a function's container among them, which are
    // its caller's. Who asks for it by name is told.
    if !logging.level.contains("bollard") && filter.max_level_hint() > Some(LevelFilter::INFO) {
        filter = filter.add_directive("bollard=info".parse()?);
    }
    let to_file = !logging.file.as_os_str().is_empty();
    let to_journal = !to_file && log::stderr_is_journal();
    let writer = if to_file {
        BoxMakeWriter::new(log::LogFile::open(&logging.file)?)
    } else if to_journal {
        BoxMakeWriter::new(log::Journal)
    } else {
        BoxMakeWriter::new(std::io::stderr)
    };
    let colours = !to_file
        && !to_journal
        && std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colours);
    // The journal notes the time of each line.
    let lines = match (logging.json, to_journal) {
        (true, false) => lines.json().boxed(),
        (true, true) => lines.json().without_time().boxed(),
        (false, false) => lines.boxed(),
        (false, true) => lines.without_time().boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).try_init()?;
    Ok(())
}

/// Displays an error with everything beneath it, `a: b: c`.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(source) = next {
            write!(f, ": {source}")?;
            next = source.source();
        }
        Ok(())
    }
}

/// The metrics of one service. Clones count together; two services in one process do not.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// By `call`.
    pub docker_calls: IntCounterVec,
    /// By `call`.
    pub keystone_calls: IntCounterVec,
    pub commits: IntCounter,
    /// By `runtime`, `start`, `outcome`.
    pub executions: IntCounterVec,
    pub cold_start_seconds: Histogram,
    pub execution_seconds: Histogram,
    /// By `runtime`, `state`.
    pub pool_workers: IntGaugeVec,
    pub queue_waiting: IntGauge,
    pub network_repairs: IntCounter,
    scrape: Arc<Mutex<()>>,
}

impl Metrics {
    pub fn new() -> Self {
        Self::register().expect("the names differ and are valid")
    }

    fn register() -> prometheus::Result<Self> {
        let executions = Opts::new("taibai_executions_total", "Executions that ended.");
        let cold_start = HistogramOpts::new(
            "taibai_cold_start_seconds",
            "From the wish for a worker to one that can run.",
        )
        .buckets(vec![0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0]);
        // Down to a warm call, up to the longest time that a function may ask for.
        let execution =
            HistogramOpts::new("taibai_execution_seconds", "Time that functions ran.").buckets(vec![
                0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
                5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
            ]);
        let workers = Opts::new("taibai_pool_workers", "Workers on this machine.");
        let metrics = Self {
            registry: Registry::new(),
            docker_calls: IntCounterVec::new(
                Opts::new("taibai_docker_calls_total", "Calls to the Docker engine."),
                &["call"],
            )?,
            keystone_calls: IntCounterVec::new(
                Opts::new("taibai_keystone_calls_total", "Calls to Keystone."),
                &["call"],
            )?,
            commits: IntCounter::new("taibai_commits_total", "Transactions committed.")?,
            executions: IntCounterVec::new(executions, &["runtime", "start", "outcome"])?,
            cold_start_seconds: Histogram::with_opts(cold_start)?,
            execution_seconds: Histogram::with_opts(execution)?,
            pool_workers: IntGaugeVec::new(workers, &["runtime", "state"])?,
            queue_waiting: IntGauge::new("taibai_queue_waiting", "Executions that wait for a worker.")?,
            network_repairs: IntCounter::new(
                "taibai_network_repairs_total",
                "Times that the rules of the network were found changed and written anew.",
            )?,
            scrape: Arc::default(),
        };
        let registry = &metrics.registry;
        registry.register(Box::new(metrics.docker_calls.clone()))?;
        registry.register(Box::new(metrics.keystone_calls.clone()))?;
        registry.register(Box::new(metrics.commits.clone()))?;
        registry.register(Box::new(metrics.executions.clone()))?;
        registry.register(Box::new(metrics.cold_start_seconds.clone()))?;
        registry.register(Box::new(metrics.execution_seconds.clone()))?;
        registry.register(Box::new(metrics.pool_workers.clone()))?;
        registry.register(Box::new(metrics.queue_waiting.clone()))?;
        registry.register(Box::new(metrics.network_repairs.clone()))?;
        Ok(metrics)
    }

    /// Brings the counter of commits up to what the database counted. May be called at any time: it
    /// never counts back, and scrapes that meet count once.
    pub fn commits_so_far(&self, total: u64) {
        let _one_at_a_time = self.scrape.lock().expect("no panic while it is held");
        self.commits.inc_by(total.saturating_sub(self.commits.get()));
    }

    /// Writes Prometheus' text format.
    pub fn render(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .expect("a family is gathered only with its metrics, and a String takes everything")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] Option<Box<Layer>>);

    #[test]
    fn a_chain_names_every_cause_once() {
        let error = Layer(
            "a is unavailable",
            Some(Box::new(Layer("no answer", Some(Box::new(Layer("reset", None)))))),
        );
        assert_eq!(Chain(&error).to_string(), "a is unavailable: no answer: reset");
        assert_eq!(Chain(&Layer("alone", None)).to_string(), "alone");
    }

    #[test]
    fn every_metric_is_rendered_under_its_name_and_labels() {
        let metrics = Metrics::new();
        metrics.docker_calls.with_label_values(&["create"]).inc();
        metrics.keystone_calls.with_label_values(&["validate"]).inc();
        metrics.commits_so_far(2);
        metrics.commits_so_far(2);
        metrics.executions.with_label_values(&["r1", "warm", "success"]).inc();
        metrics.cold_start_seconds.observe(0.15);
        metrics.execution_seconds.observe(0.00004);
        metrics.pool_workers.with_label_values(&["r1", "idle"]).set(3);
        metrics.queue_waiting.set(7);
        metrics.network_repairs.inc();

        let text = metrics.render();

        for line in [
            r#"taibai_docker_calls_total{call="create"} 1"#,
            r#"taibai_keystone_calls_total{call="validate"} 1"#,
            "taibai_commits_total 2",
            r#"taibai_executions_total{outcome="success",runtime="r1",start="warm"} 1"#,
            r#"taibai_cold_start_seconds_bucket{le="0.2"} 1"#,
            r#"taibai_execution_seconds_bucket{le="0.0001"} 1"#,
            r#"taibai_pool_workers{runtime="r1",state="idle"} 3"#,
            "taibai_queue_waiting 7",
            "taibai_network_repairs_total 1",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn clones_count_together_and_two_services_apart() {
        let (one, other) = (Metrics::new(), Metrics::new());
        one.clone().commits.inc();
        assert!(one.render().contains("taibai_commits_total 1\n"));
        assert!(other.render().contains("taibai_commits_total 0\n"));
    }
}
