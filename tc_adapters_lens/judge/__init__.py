"""What features mean, as a judge says: classes, descriptions, and how well descriptions detect where features fire."""
