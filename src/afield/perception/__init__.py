"""From pictures to features and masks: the extractors, their cache, crops of one metric scale, boxes to masks."""
