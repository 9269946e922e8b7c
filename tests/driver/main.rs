//! The drivers against what they drive. Needs Docker, root and gcc; asks no registry.

mod orchestrator;
