//! Placeholder.
pub mod disk;
#[cfg(test)]
mod tests;
