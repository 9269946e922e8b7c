//! Filters of a list, as the v1 API's query parameters say them.

use sea_orm::sea_query::{BinOper, Expr, ExprTrait, Func, IntoCondition};
use sea_orm::{ColumnTrait, Condition, Iterable};

use crate::model::{ExecutionStatus, execution};

/// One condition on one column. As in SQL, a column without a value matches none of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    In(Vec<String>),
    NotIn(Vec<String>),
    Eq(String),
    Ne(String),
    Gt(String),
    Gte(String),
    Lt(String),
    Lte(String),
    /// Contains, in whatever case. SQLite knows case in ASCII only.
    Has(String),
}

impl Filter {
    /// Reads `op:value`. Everything else is looked for as it stands, so that `bogus:1` is a value.
    pub fn parse(text: &str) -> Self {
        let list = |value: &str| value.split(',').map(str::to_owned).collect();
        match text.split_once(':') {
            Some(("in", value)) => Self::In(list(value)),
            Some(("nin", value)) => Self::NotIn(list(value)),
            Some(("eq", value)) => Self::Eq(value.to_owned()),
            Some(("neq", value)) => Self::Ne(value.to_owned()),
            Some(("gt", value)) => Self::Gt(value.to_owned()),
            Some(("gte", value)) => Self::Gte(value.to_owned()),
            Some(("lt", value)) => Self::Lt(value.to_owned()),
            Some(("lte", value)) => Self::Lte(value.to_owned()),
            Some(("has", value)) => Self::Has(value.to_owned()),
            _ => Self::Eq(text.to_owned()),
        }
    }

    /// The condition on a column that holds text.
    pub(super) fn on(&self, column: impl ColumnTrait) -> Condition {
        let expression = Expr::col(column.as_column_ref());
        match self {
            Self::In(values) => expression.is_in(values),
            Self::NotIn(values) => expression.is_not_in(values),
            Self::Eq(value) => expression.eq(value),
            Self::Ne(value) => expression.ne(value),
            Self::Gt(value) => expression.gt(value),
            Self::Gte(value) => expression.gte(value),
            Self::Lt(value) => expression.lt(value),
            Self::Lte(value) => expression.lte(value),
            Self::Has(value) => {
                // Lower case by the database on both sides, so that both know the same letters.
                // `!` escapes, since a backslash would end MySQL's literal and not PostgreSQL's.
                let mut pattern = String::with_capacity(value.len() + 2);
                pattern.push('%');
                for letter in value.chars() {
                    if matches!(letter, '%' | '_' | '!') {
                        pattern.push('!');
                    }
                    pattern.push(letter);
                }
                pattern.push('%');
                Expr::expr(Func::lower(expression)).binary(
                    BinOper::Like,
                    Expr::expr(Func::lower(Expr::val(pattern)))
                        .binary(BinOper::Escape, Expr::Constant("!".into())),
                )
            }
        }
        .into_condition()
    }

    /// The condition on an execution's status, in the words that the v1 API shows. They are few,
    /// so they are compared here and the database looks for those that matched.
    pub(super) fn on_status(&self) -> Condition {
        let matching = ExecutionStatus::iter().filter(|status| self.matches(shown(*status)));
        execution::Column::Status.is_in(matching).into_condition()
    }

    fn matches(&self, word: &str) -> bool {
        match self {
            Self::In(values) => values.iter().any(|value| value == word),
            Self::NotIn(values) => values.iter().all(|value| value != word),
            Self::Eq(value) => word == value,
            Self::Ne(value) => word != value,
            Self::Gt(value) => word > value.as_str(),
            Self::Gte(value) => word >= value.as_str(),
            Self::Lt(value) => word < value.as_str(),
            Self::Lte(value) => word <= value.as_str(),
            Self::Has(value) => word.contains(&value.to_lowercase()),
        }
    }
}

/// The v1 API's word for a status.
fn shown(status: ExecutionStatus) -> &'static str {
    match status {
        ExecutionStatus::Pending | ExecutionStatus::Running => "running",
        ExecutionStatus::Success => "success",
        ExecutionStatus::Failed | ExecutionStatus::Cancelled => "failed",
        ExecutionStatus::Error => "error",
    }
}

/// Asserts that a filter's value is a parameter on every database, and no part of the statement.
#[cfg(any(test, feature = "fuzz"))]
pub fn fuzz_filter(filter: &Filter) {
    use sea_orm::{DbBackend, EntityTrait, QueryFilter, QueryTrait};
    let plain = || "plain".to_owned();
    let same_shape = match filter {
        Filter::In(values) => Filter::In(vec![plain(); values.len()]),
        Filter::NotIn(values) => Filter::NotIn(vec![plain(); values.len()]),
        Filter::Eq(_) => Filter::Eq(plain()),
        Filter::Ne(_) => Filter::Ne(plain()),
        Filter::Gt(_) => Filter::Gt(plain()),
        Filter::Gte(_) => Filter::Gte(plain()),
        Filter::Lt(_) => Filter::Lt(plain()),
        Filter::Lte(_) => Filter::Lte(plain()),
        Filter::Has(_) => Filter::Has(plain()),
    };
    for backend in [DbBackend::Sqlite, DbBackend::MySql, DbBackend::Postgres] {
        let statement = |filter: &Filter| {
            execution::Entity::find().filter(filter.on(execution::Column::Description)).build(backend)
        };
        let (given, plain) = (statement(filter), statement(&same_shape));
        assert_eq!(given.sql, plain.sql);
        let count = |statement: sea_orm::Statement| statement.values.map_or(0, |values| values.0.len());
        assert_eq!(count(given), count(plain));
    }
    let _ = filter.on_status();
}

#[cfg(test)]
mod tests {
    use sea_orm::{DbBackend, EntityTrait, QueryFilter, QueryTrait};

    use super::*;

    #[test]
    fn an_unknown_operator_is_part_of_the_value() {
        assert_eq!(Filter::parse("bogus:1"), Filter::Eq("bogus:1".into()));
        assert_eq!(Filter::parse("plain"), Filter::Eq("plain".into()));
        assert_eq!(Filter::parse("IN:a"), Filter::Eq("IN:a".into()));
        assert_eq!(Filter::parse("eq:in:a"), Filter::Eq("in:a".into()));
        assert_eq!(Filter::parse("nin:a,b"), Filter::NotIn(vec!["a".into(), "b".into()]));
        assert_eq!(Filter::parse("has:a,b"), Filter::Has("a,b".into()));
    }

    #[test]
    fn has_reads_the_same_on_every_database() {
        for backend in [DbBackend::Sqlite, DbBackend::MySql, DbBackend::Postgres] {
            let sql = execution::Entity::find()
                .filter(Filter::Has("50%_!".into()).on(execution::Column::Description))
                .build(backend)
                .to_string();
            assert!(sql.contains("LIKE LOWER('%50!%!_!!%') ESCAPE '!'"), "{sql}");
        }
    }

    #[test]
    fn a_status_is_compared_as_it_is_shown() {
        use ExecutionStatus::*;
        let matching = |text: &str| {
            let filter = Filter::parse(text);
            ExecutionStatus::iter().filter(|status| filter.matches(shown(*status))).collect::<Vec<_>>()
        };
        let cases: [(&str, &[ExecutionStatus]); 12] = [
            ("running", &[Pending, Running]),
            ("eq:failed", &[Failed, Cancelled]),
            ("pending", &[]),
            ("cancelled", &[]),
            ("neq:running", &[Success, Failed, Error, Cancelled]),
            ("in:running,error", &[Pending, Running, Error]),
            ("nin:running,failed", &[Success, Error]),
            ("gt:failed", &[Pending, Running, Success]),
            ("gte:running", &[Pending, Running, Success]),
            ("lt:failed", &[Error]),
            ("lte:failed", &[Failed, Error, Cancelled]),
            ("has:UNN", &[Pending, Running]),
        ];
        for (text, statuses) in cases {
            assert_eq!(matching(text), statuses, "{text}");
        }
    }
}
