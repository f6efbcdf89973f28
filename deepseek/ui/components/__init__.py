"""What several tabs show: token strip, figure, sampler controls, run panels."""
