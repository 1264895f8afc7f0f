import sys; sys.path.insert(0,'test')
import foreign_bags as fb, pathlib, tempfile
from fosp_core.data.bag import read_episodes, ImportReport
d=pathlib.Path(tempfile.mkdtemp())
rows=fb.scene()
rep=ImportReport()
for e in read_episodes(fb.write(d/'a',rows), fb.contract(), report=rep):
    print(len(e), e.images['image'][:,0,0,0], e.vectors['ee_pose'][:,0], e.action[:,0]*.5, (e.stamp-fb.START)/1e6, e.is_last[-1], e.meta)
print(rep.text()); print('\n'.join(rep.lines()))
