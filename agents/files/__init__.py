"""Files as users have them: opened, recognised, read in bounded memory."""
