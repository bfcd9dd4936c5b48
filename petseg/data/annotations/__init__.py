"""Read the labels of annotation tools, and write masks as such labels. Each module has the files of one tool."""
