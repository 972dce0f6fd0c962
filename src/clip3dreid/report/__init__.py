"""Pages and figures about results, without torch."""
