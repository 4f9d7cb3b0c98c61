"""The page that shows runs to people: reading their folders, pictures, figures, one self-contained HTML file."""
