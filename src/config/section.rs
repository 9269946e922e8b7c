//! What is known of a section besides its values: the names of its keys and their documentation.

/// One section of taibai.conf.
#[derive(Debug)]
pub struct Section {
    pub name: &'static str,
    /// Lines of documentation, as in the source.
    pub about: &'static [&'static str],
    pub options: &'static [Opt],
}

/// One key of a section.
#[derive(Debug)]
pub struct Opt {
    pub name: &'static str,
    /// Lines of documentation, as in the source.
    pub help: &'static [&'static str],
    /// The module of `formats` that reads and writes the value.
    pub format: &'static str,
}

/// Defines a section: the struct, its defaults, and how each key is written in the file. In one
/// place, so that the sample and the names in error messages cannot differ from what is read.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        pub struct $section:ident {
            $(
                $(#[doc = $help:literal])+
                pub $key:ident: $type:ty as $format:tt = $default:expr;
            )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $section {
            $(
                $(#[doc = $help])+
                #[serde(with = $format)]
                pub $key: $type,
            )+
        }

        impl Default for $section {
            fn default() -> Self {
                Self { $($key: $default,)+ }
            }
        }

        impl $section {
            const ABOUT: &'static [&'static str] = &[$($about),+];
            const OPTIONS: &'static [Opt] = &[
                $(Opt { name: stringify!($key), help: &[$($help),+], format: $format }),+
            ];
        }
    };
}

/// Defines the whole file from its sections.
macro_rules! config {
    ($(#[doc = $about:literal])+ pub struct $config:ident { $(pub $name:ident: $section:ident,)+ }) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Default, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $config {
            $(pub $name: $section,)+
        }

        impl $config {
            pub const SECTIONS: &'static [Section] = &[
                $(Section {
                    name: stringify!($name),
                    about: $section::ABOUT,
                    options: $section::OPTIONS,
                }),+
            ];
        }
    };
}

pub(super) use {config, section};
