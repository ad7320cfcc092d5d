"""What tests share, named by what it fakes, starts or makes. No tests here."""
