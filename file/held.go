package file

import "github.com/gearsfs/gearsfs"

// Held returns for each session the inodes without a name that stay for it.
func (m *Machine) Held() (map[gearsfs.SessionID][]gearsfs.Ino, error) {
	r := m.read()
	defer r.close()
	held := make(map[gearsfs.SessionID][]gearsfs.Ino)
	err := scanOrphans(r.view, func(ino gearsfs.Ino, holders []gearsfs.SessionID) {
		for _, id := range holders {
			held[id] = append(held[id], ino)
		}
	})
	return held, err
}
