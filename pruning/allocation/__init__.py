"""How much each block loses, where that is not the same for all."""
