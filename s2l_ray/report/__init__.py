"""The HTML report: what a page is made of (`blocks`), its drawings (`charts`), and the file it becomes (`html`)."""
