"""Drawn scenes: pictures, questions and exact evidence, without a download.

A scene is one or more pages of square cells on a pale ground; a few cells hold
a glyph in a colour. Everything follows from (config, seed, split, index).

    vocab      the closed list of words
    glyphs     16 shapes as masks
    picture    a page as PNG
    scene      what lies where
    questions  what is asked, each with a twin that needs no look-up
    haystack   many pages, with what is asked about at a known depth
    video      frames of a video, with what is asked about in some of them
    shift      noise, lower resolution, larger or smaller glyphs
    source     `scenes_referring`, `scenes_pages`, `scenes_haystack` and
               `scenes_video` as an example.Source
"""
