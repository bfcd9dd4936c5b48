"""Read the labels of annotation tools. Each module reads the files of one tool into `labels.Labels`."""
