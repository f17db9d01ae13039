"""What a person looks at: figures and comparison tables."""
