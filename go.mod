module ctguard

go 1.26.0
