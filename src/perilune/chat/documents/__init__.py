"""The text of documents: PDF, office files, HTML, and text itself. Nothing in them is ever run or fetched.

plain.py     what is text already, and HTML without its tags
pdf.py       PDF, by pypdf
office.py    docx, xlsx, pptx, odt, ods and odp: XML in a zip
aside.py     the door: packed documents are read in a process of their own, under limits.py
"""
