"""Records of an instruction data set → tokenised, masked examples; one value per record for conditions."""
