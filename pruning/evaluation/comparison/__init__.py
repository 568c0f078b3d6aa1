"""An artifact beside its base and quantised base: scores, paired confidence intervals and gates."""
