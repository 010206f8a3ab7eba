package procfile

import (
	"errors"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"
)

// usual is the space, in bytes, that most files of /proc fit into at once.
const usual = 4096

// Read returns what the file holds now. Its errors are those of os.ReadFile.
func Read(path string) ([]byte, error) {
	fd, err := again(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	text := make([]byte, 0, usual)
	for {
		text = slices.Grow(text, usual/2)
		n, err := again(func() (int, error) { return unix.Read(fd, text[len(text):cap(text)]) })
		switch {
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		case n == 0:
			return text, nil
		}
		text = text[:len(text)+n]
	}
}

// again makes a call again as long as a signal ends it.
func again(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
