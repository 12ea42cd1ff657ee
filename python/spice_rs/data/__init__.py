"""Records of an instruction data set → tokenised, masked examples; whether data are those that rows came from."""
